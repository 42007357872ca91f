"""Provenance: hashes of what is known by name (contents) and of what code means (definition), the chain of seals over
stages (seals), and secrets that stay out of artifacts (masking).
"""
