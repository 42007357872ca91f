"""What is in a file of rows, before anything is trained on it: figures and samples (look), how varied it is (diversity,
kinds, instructions) and how another version differs (against), their schema (report), as text (text) and as a page
(page); and rows written in other people's shapes (convert)."""
