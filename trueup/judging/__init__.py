"""Judging by others: a language model behind an HTTP endpoint (endpoint), what it is asked and how its reply is read
(question), and the votes of people (votes).
"""
