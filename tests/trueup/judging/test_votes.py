"""Votes are read without the web application, and only where the compared texts are still the same."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from trueup.errors import DataError
from trueup.judging.votes import Vote, current, read_votes, text_sha256, votes_digest


def vote(**values: object) -> Vote:
    hashes = text_sha256("old 1"), text_sha256("new 0")
    return replace(Vote("v1", "p1", 1, 0, *hashes, outcome=1.0, voter="ann", seconds=2.5), **values)  # type: ignore[arg-type]


TEXTS = {"p1": (["old 0", "old 1"], ["new 0", "new 1"])}


def test_where_nobody_voted_there_are_no_votes_and_no_digest(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    assert read_votes(path) == [] and votes_digest(path) is None
    assert not path.exists(), "reading makes nothing"


@pytest.mark.parametrize("content", [b"not a database at all, but long enough to be read as one" * 40, b""])
def test_a_file_that_holds_no_votes_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "votes.sqlite"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"votes\.sqlite: not a store of votes .*move it away"):
        read_votes(path)


def test_a_store_of_campaign_labels_is_not_taken_for_votes(tmp_path: Path) -> None:
    path = tmp_path / "votes.sqlite"
    db = sqlite3.connect(path)
    db.executescript(
        """
        CREATE TABLE item (item_id, prompt_id, sampler);
        CREATE TABLE event (event_id, item_id, client_uuid, source, kind, purpose, tiers, annotator, seconds,
            supersedes);
        INSERT INTO item VALUES ('i', 'p1', '{"policy_sha256": "x"}');
        INSERT INTO event VALUES (1, 'i', 'u', 'human', 'label', 'work', '[[0], [1]]', 'ann', 1.0, NULL);
        """
    )
    db.commit()
    db.close()
    with pytest.raises(DataError, match="not a store of votes"):
        read_votes(path)


def test_a_vote_counts_where_both_texts_are_still_the_ones_that_were_compared() -> None:
    stands = vote()
    others = [
        vote(prompt_id="p2"),
        vote(sft_index=0),
        vote(aligned_index=2),
        vote(aligned_sha256=text_sha256("new 0 as it was")),
    ]
    assert current([stands, *others], TEXTS) == ([stands], len(others))
    assert current([], TEXTS) == ([], 0)
