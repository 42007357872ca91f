"""Demonstrations that are not trained on, since they nearly repeat a held-out prompt or an earlier demonstration."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import overload

from sft.config import SFTConfig
from sft.tokens import Source, Tokens, dialogues
from trueup.console import say
from trueup.data.containers.spool import code_of, kept
from trueup.data.duplicates.rows import NEAR_HELDOUT, REPEATED, NearDuplicate
from trueup.data.duplicates.training import near_heldout, repeated_demonstrations, too_many
from trueup.data.records import Demonstration
from trueup.data.split import touches_heldout
from trueup.files import Json
from trueup.runs import StageRun


def near_duplicates(sources: Sequence[Source], config: SFTConfig, stage: StageRun) -> list[dict[int, str]]:
    """Why dialogues of each source are left out, by their number in it. Each is listed in near_duplicates.jsonl."""
    rows = Encodable(sources)
    if message := too_many(len(rows), "demonstrations"):
        say(f"{'data':<12} {message}")
        stage.find("info", "near_duplicates", message)
        return [{} for _ in sources]
    found = _found(rows, config) if None in [one.key for one in sources] else _remembered(rows, sources, config)
    for reason in (NEAR_HELDOUT, REPEATED):
        stage.leave_out_near([one for one in found.values() if one.reason == reason], "demonstrations")
    reasons = {index: one.reason for index, one in found.items()}
    if reasons:
        say(f"{'data':<12} {len(reasons)} near-duplicates are left out, see near_duplicates.jsonl")
    by_source: list[dict[int, str]] = [{} for _ in sources]
    for index, reason in reasons.items():
        source, number = rows.place(index)
        by_source[source][number] = reason
    return by_source


def _found(rows: Encodable, config: SFTConfig) -> dict[int, NearDuplicate]:
    """The demonstrations that are left out, by their place."""
    near = near_heldout(rows, config.split)
    if config.near_duplicates == "keep":
        return near
    others = [i for i, row in enumerate(rows) if i not in near and not touches_heldout(row, config.split)]
    return near | {others[i]: one for i, one in repeated_demonstrations(rows.at(others)).items()}


def _remembered(rows: Encodable, sources: Sequence[Source], config: SFTConfig) -> dict[int, NearDuplicate]:
    """The same of sources that lie on disk: looked for once."""

    def look(folder: Path) -> Json:
        return {str(index): one.model_dump() for index, one in _found(rows, config).items()}

    key = [[one.key for one in sources], config.split.model_dump(mode="json"), config.near_duplicates, code_of("data")]
    _, report = kept("near_duplicates", key, look)
    return {int(index): NearDuplicate.model_validate(values) for index, values in report.items()}


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
