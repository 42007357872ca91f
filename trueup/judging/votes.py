"""Blind votes of people on a comparison, read from the `votes.sqlite` of a run.

`ui.labels.votes` writes them, with the same code as campaign labels. This module only reads them, with the standard
library alone, so that the compare stage can count people among its judges without the web application. Each vote names
its two texts by their hashes. After the policies are sampled anew it is a vote on other texts, and is not used."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Literal

from trueup.errors import DataError

VOTES = "votes.sqlite"
"""In the run directory, beside the stages: a comparison that runs again leaves it alone."""

Policy = Literal["sft", "aligned"]


@dataclass(frozen=True)
class Vote:
    """One person's judgement of two answers to one prompt, one of each policy."""

    vote_id: str
    prompt_id: str
    sft_index: int
    """Index among the SFT policy's answers to that prompt."""
    aligned_index: int
    sft_sha256: str
    """Hash of the answer's text, by `text_sha256`."""
    aligned_sha256: str
    outcome: float
    """1: the aligned policy's answer was preferred, 0: the SFT policy's, 0.5: a tie, or both are bad."""
    voter: str
    """Pseudonym."""
    seconds: float | None
    """From the first sight of the pair to the vote."""


def text_sha256(text: str) -> str:
    """Hash of an answer as the policy wrote it."""
    return hashlib.sha256(text.encode()).hexdigest()


_CURRENT = """
SELECT event.client_uuid, item.prompt_id, item.sampler, event.tiers, event.annotator, event.seconds
FROM event JOIN item ON item.item_id = event.item_id
WHERE event.source = 'human' AND event.kind = 'label' AND event.purpose = 'work'
  AND NOT EXISTS (SELECT 1 FROM event AS later WHERE later.supersedes = event.event_id)
ORDER BY event.event_id
"""


def read_votes(path: Path) -> list[Vote]:
    """All current votes of a vote store, the oldest first; none if there is no such file. Skips are no votes."""
    if not path.is_file():
        return []
    try:
        # Not mode=ro: such a connection could not remove the -wal and -shm files that it creates beside the store.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=10)) as db:
            return [_vote(*row) for row in db.execute(_CURRENT)]
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a store of votes ({error}); move it away, and voting starts a new one") from None


def _vote(vote_id: str, prompt_id: str, sampler: str, tiers: str, voter: str, seconds: float | None) -> Vote:
    answers = json.loads(sampler)["answers"]
    groups = json.loads(tiers)
    by_policy: dict[Policy, Any] = {answer["policy"]: answer for answer in answers}
    outcome = 0.5 if len(groups) == 1 else float(answers[groups[0][0]]["policy"] == "aligned")
    sft, aligned = by_policy["sft"], by_policy["aligned"]
    hashes = sft["sha256"], aligned["sha256"]
    return Vote(vote_id, prompt_id, sft["index"], aligned["index"], *hashes, outcome, voter, seconds)


def votes_digest(path: Path) -> str | None:
    """A hash of the current votes; None while there are none."""
    votes = sorted(json.dumps(astuple(vote)) for vote in read_votes(path))
    return hashlib.sha256("\n".join(votes).encode()).hexdigest() if votes else None


def current(votes: Iterable[Vote], texts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> tuple[list[Vote], int]:
    """The votes whose two texts are still those of the comparison, and the number of the others.

    texts  of each prompt, by its id, the SFT policy's answers and the aligned one's
    """
    hashes = {name: [list(map(text_sha256, side)) for side in sides] for name, sides in texts.items()}
    current_votes, others = list[Vote](), 0
    for vote in votes:
        sft, aligned = hashes.get(vote.prompt_id, ([], []))
        sides = ((sft, vote.sft_index, vote.sft_sha256), (aligned, vote.aligned_index, vote.aligned_sha256))
        if all(index < len(texts) and texts[index] == sha256 for texts, index, sha256 in sides):
            current_votes.append(vote)
        else:
            others += 1
    return current_votes, others
