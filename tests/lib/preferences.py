"""Labelled pairs, for tests that need no more of them than their two answers."""

from __future__ import annotations

from typing import Any

from trueup.data.records import Message, Preference


def pair(number: int, chosen: str, rejected: str, **keys: Any) -> Preference:
    return Preference(
        prompt=[Message(role="user", content=f"Question {number}?")],
        chosen=[Message(role="assistant", content=chosen)],
        rejected=[Message(role="assistant", content=rejected)],
        prompt_id=str(number),
        split="train",
        label_id=keys.pop("label_id", str(number)),
        source=keys.pop("source", "import"),
        annotator=keys.pop("annotator", "ann"),
        created_utc="2026-01-01T00:00:00+00:00",
        **keys,
    )
