"""Parts of the checks of all stages: the rows of files and their tokens (rows), and models and folders on this machine
(places). `trueup check` itself is trueup/check.py.
"""
