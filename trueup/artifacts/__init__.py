"""Schemas of the JSON files that stages leave: their common base (artifact), the manifest, and the parts of reports
that other packages may read (reports).
"""
