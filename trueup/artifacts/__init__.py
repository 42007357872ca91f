"""The JSON files that stages leave, as schemas: what they share (artifact), the manifest, and what other packages may
read of a report (reports).
"""
