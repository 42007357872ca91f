"""Data: the rows that stages exchange and the split that they agree on (records), other people's formats (formats),
rubrics, Python of the user's own (own_code), and what is measured on texts. The starter data lies here too.
"""
