"""Alignment on labelled answers: the stages (dpo, simpo, kto), their pairs in tokens (labelled) and reference
(reference), how much each pair counts (trainer, losses), and how far a policy learns (learning)."""
