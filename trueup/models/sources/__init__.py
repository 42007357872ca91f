"""Sources of a base model besides a folder: the embedded model (embedded), and a GGUF file (gguf)."""
