"""Two policies on the same prompts whose answers a program verifies: accuracies, and the test between them."""

from __future__ import annotations

from trueup.artifacts.artifact import Artifact
from trueup.artifacts.reports import Estimate


class McNemar(Artifact):
    """The exact test of whether two policies are right on different prompts by more than chance."""

    p_value: float
    both: int
    only_sft: int
    only_aligned: int
    neither: int


class PairedAccuracy(Artifact):
    """Accuracy of both policies on the same prompts."""

    sft: Estimate
    aligned: Estimate
    mcnemar: McNemar
    unverified: int
    """Prompts that the verifier could not judge."""
