"""Sources of a base model besides a folder: the embedded model (embedded), a GGUF file (gguf), and a hub id (hub), with
a sentence for each way in which it cannot be had (refusals); the files of a model and of an adapter (files); and what a
model is before its weights are read (settings).
"""
