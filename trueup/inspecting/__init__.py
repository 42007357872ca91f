"""What is in a file of rows, before anything is trained on it: figures and samples (look), their schema (report), as
text (text) and as a page (page); and rows written in other people's shapes (convert)."""
