"""The label stage: what people are asked and the labels that are exported (run), its check (check), and the sampling
of answers while people label (sampling).
"""
