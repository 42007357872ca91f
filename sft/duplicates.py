"""Demonstrations that are not trained on, since they nearly repeat a held-out prompt or an earlier demonstration."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import overload

from sft.config import SFTConfig
from sft.tokens import Source, Tokens, dialogues
from trueup.console import say
from trueup.data.duplicates.training import near_heldout, repeated_demonstrations
from trueup.data.records import Demonstration
from trueup.data.split import touches_heldout
from trueup.runs import StageRun


def near_duplicates(sources: Sequence[Source], config: SFTConfig, stage: StageRun) -> list[dict[int, str]]:
    """Why dialogues of each source are left out, by their number in it. Each is listed in near_duplicates.jsonl."""
    rows = Encodable(sources)
    near = near_heldout(rows, config.split)
    stage.leave_out_near(list(near.values()), "demonstrations")
    reasons = {index: one.reason for index, one in near.items()}
    if config.near_duplicates == "drop":
        others = [i for i, row in enumerate(rows) if i not in near and not touches_heldout(row, config.split)]
        repeated = {others[i]: one for i, one in repeated_demonstrations(rows.at(others)).items()}
        stage.leave_out_near(list(repeated.values()), "demonstrations")
        reasons |= {index: one.reason for index, one in repeated.items()}
    if reasons:
        say(f"{'data':<12} {len(reasons)} near-duplicates are left out, see near_duplicates.jsonl")
    by_source: list[dict[int, str]] = [{} for _ in sources]
    for index, reason in reasons.items():
        source, number = rows.place(index)
        by_source[source][number] = reason
    return by_source


class Encodable(Sequence[Demonstration]):
    """The demonstrations of all sources of which something fits, read from where they lie when they are asked for."""

    def __init__(self, sources: Sequence[Source], indices: Sequence[int] | None = None):
        self._sources = sources
        self._numbers = [one.of_demonstration[dialogues(one.of_demonstration)[0]] for one in map(_tokens, sources)]
        self._begins = [0, *accumulate(map(len, self._numbers))]
        self._indices = range(self._begins[-1]) if indices is None else indices

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Demonstration: ...
    @overload
    def __getitem__(self, index: slice) -> Encodable: ...
    def __getitem__(self, index: int | slice) -> Demonstration | Encodable:
        if isinstance(index, slice):
            return self.at(self._indices[index])
        source, number = self.place(self._indices[index])
        return self._sources[source].demonstrations[int(self._numbers[source][number])]

    def at(self, indices: Sequence[int]) -> Encodable:
        return Encodable(self._sources, indices)

    def place(self, index: int) -> tuple[int, int]:
        """(source, number of the dialogue in it)."""
        source = bisect_right(self._begins, index) - 1
        return source, index - self._begins[source]


def _tokens(source: Source) -> Tokens:
    return Tokens([source])
