"""Models: how one is loaded and where it runs, conversations as its tokens (chat), and what it computes: samples,
scores, log-probabilities.
"""
