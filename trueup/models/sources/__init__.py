"""Sources of a base model besides a folder: the embedded model (embedded), a GGUF file (gguf), and a hub id (hub), with
a sentence for each way in which it cannot be had (refusals); and the files of a model and of an adapter (files).
"""
