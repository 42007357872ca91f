"""Alignment on labelled answers: the stage (dpo), its reference (reference), and how far it learns (learning)."""
