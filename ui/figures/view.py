"""The labels that count, as columns, and their shares for the figures.

Labels that count are `label` events of purpose `work`, by people, not superseded. Hidden repeats, gold items and the
qualification round measure quality and are counted separately.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from trueup.artifacts.reports import Estimate
from trueup.statistics.intervals import wilson
from ui.figures.agreement import Agreement, LabelCodes
from ui.figures.log import BOTH_BAD, GOLD, LABEL, QUALIFICATION, REPEAT, TIE, WORK, Log
from ui.figures.schema import ShareFigures
from ui.labels.judgements import Tiers, agrees

READING_WORDS_PER_S = 15.0
"""A label that took less time than its words need at this speed was not read: adults read about 4 words a second (a
meta-analysis: Brysbaert 2019, https://doi.org/10.1016/j.jml.2019.104047)."""
NO_LABELS = "no labels"
HOUR_MS = 3_600_000


class View:
    """The columns of the labels that count."""

    def __init__(self, log: Log, gold_answers: Mapping[int, Tiers], purposes: tuple[int, ...] = (WORK,)):
        self.log, self.gold_answers = log, gold_answers
        self.sources = np.array([source == "human" for source, _ in log.people] or [False])
        self.names = [name for _, name in log.people]
        self.counted = log["alive"] & self.sources[log["who"]] if log.size else np.zeros(0, dtype=bool)
        self.rows = np.flatnonzero(self.counted & (log["kind"] == LABEL) & np.isin(log["purpose"], purposes))
        self.who, self.item, self.verdict = (log[name][self.rows] for name in ("who", "item", "verdict"))

    def of(self, kind: int, purpose: int | None = None) -> np.ndarray:
        """Rows of one kind and purpose, by people, not taken back."""
        mask = self.counted & (self.log["kind"] == kind)
        return np.flatnonzero(mask if purpose is None else mask & (self.log["purpose"] == purpose))

    def measured(self, purpose: int) -> np.ndarray:
        """Rows of the labels that a hidden check measures: each person's first of each item, taken back or not.

        The first label is the person's own judgement; a second one, after an undo, may be a correction.
        """
        if not self.log.size:
            return np.zeros(0, dtype=np.int64)
        mask = self.sources[self.log["who"]] & (self.log["kind"] == LABEL) & (self.log["purpose"] == purpose)
        rows = np.flatnonzero(mask)
        _, first = np.unique(self.log["item"][rows].astype(np.int64) * len(self.names) + self.log["who"][rows], True)
        return np.sort(rows[first])

    def column(self, name: str) -> np.ndarray:
        return self.log[name][self.rows]

    def by_person(self, rows: np.ndarray) -> np.ndarray:
        return np.bincount(self.log["who"][rows], minlength=len(self.names))

    def labels(self, first: int | None = None) -> LabelCodes:
        """The best answer in each label, as a category without order, for items with two labels or more.

        first  use only this many labels, the oldest
        """
        item, who, verdict = self.item[:first], self.who[:first], self.verdict[:first]
        several = np.bincount(item, minlength=self.log.items)[item] > 1
        present = np.bincount(verdict[several], minlength=BOTH_BAD + 1) > 0
        value = (present.cumsum() - 1)[verdict[several]]
        return LabelCodes(item[several], who[several], value, int(present.sum()))

    def grades(self) -> LabelCodes:
        """Strength for the second answer, from -3 to 3 as codes 0 to 6; a tie and both bad are the middle."""
        strength = self.column("strength")
        graded = (self.column("answers") == 2) & ((strength > 0) | (self.verdict >= TIE))
        several = np.bincount(self.item[graded], minlength=self.log.items)[self.item] > 1
        usable = graded & several
        side = np.select([self.verdict == 0, self.verdict == 1], [-1, 1], 0)
        return LabelCodes(self.item[usable], self.who[usable], (3 + side * np.maximum(strength, 0))[usable], 7)


# ---- Shares -----------------------------------------------------------------------------------------------------

# A rate: its rows, whether it holds in each of them, and the share by chance alone.
Rate = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def rates_of(view: View) -> dict[str, Rate]:
    """For each share that is shown: its rows, whether it holds in each of them, and the share by chance if known."""
    log, rows = view.log, view.rows
    first_shown, answers, longer = view.column("first_shown"), view.column("answers"), view.column("chose_longer")
    words, seconds = view.column("words"), view.column("seconds")
    sided, compared, timed = (first_shown >= 0) & (view.verdict < TIE), longer >= 0, (seconds >= 0) & (words > 0)
    golden, passed = (view.measured(purpose) for purpose in (GOLD, QUALIFICATION))
    again, before = _repeats(view)

    everything = np.arange(len(rows))
    return {
        "left": (rows[sided], (view.verdict == first_shown)[sided], 1 / answers[sided]),
        "longer": (rows[compared], (longer == 1)[compared], None),
        "tie": (rows, (view.verdict == TIE)[everything], None),
        "both_bad": (rows, (view.verdict == BOTH_BAD)[everything], None),
        "too_fast": (rows[timed], (seconds < words / READING_WORDS_PER_S)[timed], None),
        "gold": _right(view, golden),
        "qualification": _right(view, passed),
        "consistency": (again, log["verdict"][again] == log["verdict"][before], None),
    }


def _right(view: View, rows: np.ndarray) -> Rate:
    """Labels of items with a known answer, and whether they agree with it."""
    log, codes = view.log, len(view.log.said)
    golden = np.zeros(log.items, dtype=bool)
    golden[list(view.gold_answers)] = True
    rows = rows[golden[log["item"][rows]]]
    # There are few gold items, and few distinct answers to each.
    key, index = np.unique(log["item"][rows].astype(np.int64) * codes + log["said"][rows], return_inverse=True)
    labelled = [json.loads(tiers) if tiers else None for tiers in log.said]
    right = [agrees(labelled[one % codes], view.gold_answers[one // codes]) for one in key.tolist()]
    return rows, np.array(right, dtype=bool)[index], None


def _repeats(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the hidden repeats, and of the same annotator's last label of the same item before each."""
    again, log, people = view.measured(REPEAT), view.log, len(view.names)
    repeated = np.zeros(log.items, dtype=bool)
    repeated[log["item"][again]] = True
    human = view.sources[log["who"]] if log.size else np.zeros(0, dtype=bool)
    work = np.flatnonzero(human & (log["kind"] == LABEL) & (log["purpose"] == WORK) & repeated[log["item"]])
    before, keys = (log["item"][rows].astype(np.int64) * people + log["who"][rows] for rows in (work, again))
    order = np.lexsort((work, before))
    # The place of the repeat among them: after all labels of its item by its annotator until then.
    at = np.searchsorted(before[order] * log.size + work[order], keys * log.size + again) - 1
    has_label = at >= 0
    has_label[has_label] = before[order][at[has_label]] == keys[has_label]
    return again[has_label], work[order][at[has_label]]


def by_chance(chance: np.ndarray | None) -> float | None:
    """The share by chance; None if there is none. Without labels it is a half."""
    return None if chance is None else float(chance.mean()) if len(chance) else 0.5


def share_of(hits: float, n: int, chance: float | None = None) -> ShareFigures:
    """A share of independent trials; with the two-sided binomial p if there is a share by chance."""
    share = plain_share(wilson(hits, n).estimate(), None if n else NO_LABELS)
    if chance is not None:
        share["chance"], share["p"] = chance, _binomial_p(int(hits), n, chance) if n else None
    return share


def plain_share(estimate: Estimate, note: str | None = None) -> ShareFigures:
    """An estimate as a share for the figures."""
    low, high = estimate.ci_low, estimate.ci_high
    return {"value": estimate.value, "ci_low": low, "ci_high": high, "n": estimate.n, "note": note}


def _binomial_p(hits: int, n: int, chance: float) -> float:
    """Twice the smaller tail."""
    from scipy.special import bdtr, bdtrc

    at_least = float(bdtrc(hits - 1, n, chance)) if hits else 1.0
    return min(1.0, 2 * min(float(bdtr(hits, n, chance)), at_least))


def as_share(result: Agreement) -> ShareFigures:
    """An agreement as a share for the figures."""
    return {
        "value": result.value,
        "ci_low": result.low,
        "ci_high": result.high,
        "n": result.items,
        "labels": result.labels,
        "note": result.note,
    }


def utc(ms: int) -> str | None:
    """A time as text; None for no time."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms >= 0 else None
