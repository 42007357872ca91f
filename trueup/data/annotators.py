"""What several annotators said of the same answers."""

from __future__ import annotations

from collections.abc import Iterable

from trueup.data.records import Preference

Key = tuple[str, str, str, str]
"""Source, prompt and the two texts: a person is not compared with a program."""


def votes_by_pair(pairs: Iterable[Preference]) -> dict[Key, dict[str, list[bool]]]:
    """Of each pair of answers that somebody put in a strict order: by annotator, whether they preferred the first text
    in the alphabet."""
    votes: dict[Key, dict[str, list[bool]]] = {}
    for pair in pairs:
        chosen, rejected = pair.texts
        if chosen != rejected:
            key = (pair.source, pair.prompt_id, min(chosen, rejected), max(chosen, rejected))
            votes.setdefault(key, {}).setdefault(pair.annotator, []).append(chosen < rejected)
    return votes
