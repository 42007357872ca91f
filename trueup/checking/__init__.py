"""What the checks of all stages are made of: the rows of a file and their tokens (rows), and what lies where (places).
`trueup check` itself is trueup/check.py.
"""
