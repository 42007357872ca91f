"""Judging by others: a language model behind an HTTP endpoint (endpoint), its question and the reading of its reply
(question), and the votes of people (votes).
"""
