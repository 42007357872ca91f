"""Parts of the checks of all stages: the rows of files and their tokens (rows), what is asked of people (labels),
models and folders on this machine (places), and the base model before it is loaded (model). `trueup check` itself is
trueup/check.py.
"""
