"""Containers of rows: JSON, JSON Lines, CSV, TSV, Parquet and Arrow, packed by gzip, zstd, bzip2 or xz or not. Each is
read row by row, so that memory holds the rows and not the file (reading, text, tables, streams), and of large files not
even the rows (spool); which of them a section takes, and what their columns are called (choice);
files that grow while a stage works (appended).
"""
