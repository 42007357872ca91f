"""Provenance: hashes of files that a config names (contents, inputs) and of code (definition), the commits that a run
stays at (commits), the chain of seals over stages (seals), versions of packages and code (software), and secrets that
stay out of artifacts (masking)."""
