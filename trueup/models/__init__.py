"""Models: where and how one is loaded, its chat template, conversations as its tokens (chat), and what is read from it:
samples, scores, log-probabilities.
"""
