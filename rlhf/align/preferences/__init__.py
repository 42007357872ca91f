"""Alignment on labelled answers: the stage (dpo), its pairs in tokens (labelled), their reference (reference), how much
each counts (trainer, losses), and how far it learns (learning)."""
