"""Statistics of labelling: who labels, how fast, with which biases, and how well. Pure functions of a log's columns.

What counts: `label` events of purpose `work`, by people, not superseded. Hidden repeats, gold items and the
qualification round measure quality and are counted apart, and so is whatever was left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np

from trueup.artifacts.reports import RewardCard
from trueup.statistics.intervals import wilson
from ui.figures import agreement
from ui.figures.agreement import Agreement, Labels
from ui.figures.log import BOTH_BAD, CHUNK, FLAG, GOLD, LABEL, LATE, QUALIFICATION, REPEAT, SKIP, TIE, UNDO, WORK, Log
from ui.labels.judgements import Tiers, agrees
from ui.labels.tables import Database

READING_WORDS_PER_S = 15.0
"""A label that took less time than its words need at this speed was not read: adults read about 4 words a second (a
meta-analysis: Brysbaert 2019, https://doi.org/10.1016/j.jml.2019.104047)."""
NO_LABELS = "no labels"
BAR = 0.03
"""Half-width of an interval, as a share, that "enough labels" is measured against."""
MORE = 100
"""Labels that are for sale."""
_PAIRS_OF = 8
"""Agreement of every two annotators is shown for so many of them, those with the most labels: 28 pairs."""
_HOURS = 72
_STEPS = 24
_HOUR_MS = 3_600_000

Figures = dict[str, Any]

# ---- Figures ----------------------------------------------------------------------------------------------------


class _View:
    """The columns of the labels that count, and what is asked of them more than once."""

    def __init__(self, log: Log, known: Mapping[int, Tiers], purposes: tuple[int, ...] = (WORK,)):
        self.log, self.known = log, known
        self.sources = np.array([source == "human" for source, _ in log.people] or [False])
        self.names = [name for _, name in log.people]
        self.counted = log["alive"] & self.sources[log["who"]] if log.size else np.zeros(0, dtype=bool)
        self.rows = np.flatnonzero(self.counted & (log["kind"] == LABEL) & np.isin(log["purpose"], purposes))
        self.who, self.item, self.verdict = (log[name][self.rows] for name in ("who", "item", "verdict"))

    def of(self, kind: int, purpose: int | None = None) -> np.ndarray:
        """Rows of one kind and purpose, by people, not taken back."""
        wanted = self.counted & (self.log["kind"] == kind)
        return np.flatnonzero(wanted if purpose is None else wanted & (self.log["purpose"] == purpose))

    def measured(self, purpose: int) -> np.ndarray:
        """Rows of the labels that a hidden check measures: of each person and item the first, taken back or not.

        What was given first is what was thought; a second one, after an undo, may be a correction.
        """
        if not self.log.size:
            return np.zeros(0, dtype=np.int64)
        wanted = self.sources[self.log["who"]] & (self.log["kind"] == LABEL) & (self.log["purpose"] == purpose)
        rows = np.flatnonzero(wanted)
        _, first = np.unique(self.log["item"][rows].astype(np.int64) * len(self.names) + self.log["who"][rows], True)
        return np.sort(rows[first])

    def column(self, name: str) -> np.ndarray:
        return self.log[name][self.rows]

    def by_person(self, rows: np.ndarray) -> np.ndarray:
        return np.bincount(self.log["who"][rows], minlength=len(self.names))

    def labels(self, first: int | None = None) -> Labels:
        """Which answer is best, of the items that have two labels or more; as a category without order.

        first  of the first so many labels only
        """
        item, who, verdict = self.item[:first], self.who[:first], self.verdict[:first]
        several = np.bincount(item, minlength=self.log.items)[item] > 1
        present = np.bincount(verdict[several], minlength=BOTH_BAD + 1) > 0
        value = (present.cumsum() - 1)[verdict[several]]
        return Labels(item[several], who[several], value, int(present.sum()))

    def grades(self) -> Labels:
        """How much the second answer is better, from -3 to 3 as codes 0 to 6; a tie and both bad are the middle."""
        strength = self.column("strength")
        graded = (self.column("answers") == 2) & ((strength > 0) | (self.verdict >= TIE))
        several = np.bincount(self.item[graded], minlength=self.log.items)[self.item] > 1
        kept = graded & several
        side = np.select([self.verdict == 0, self.verdict == 1], [-1, 1], 0)
        return Labels(self.item[kept], self.who[kept], (3 + side * np.maximum(strength, 0))[kept], 7)


def figures(
    log: Log, known: Mapping[int, Tiers], now_ms: int, slots: Mapping[str, int], coefficients: bool = True
) -> Figures:
    """All that is shown, as JSON.

    known         the known answers of gold items, see `known_answers`
    slots         how many are open, leased and done
    coefficients  say how far people agree by more than the share of equal labels
    """
    view = _View(log, known)
    rates = _rates(view)
    joined = view.labels()
    people = _people(view, rates, joined)
    overall = _overall(view, rates)
    progress = _progress(view, slots, now_ms)
    found: Figures = {
        "progress": progress,
        "overall": overall,
        "annotators": people,
        "agreement": _agreements(view, joined, coefficients),
        "pairs": _pairs(view, joined),
        "programs": _programs(view),
        "hours": _hours(view),
        "drift": _drift(view),
        "history": _history(view),
        "excluded": _excluded(view),
        "flags": _flags(view),
    }
    return {**found, "findings": _findings(found)}


# A rate: of which rows it is, in which of them it holds, and what chance alone would give.
_Rate = tuple[np.ndarray, np.ndarray, np.ndarray | None]


def _rates(view: _View) -> dict[str, _Rate]:
    """For each share that is shown: its rows, whether it holds in each of them, and the share by chance if known."""
    log, rows = view.log, view.rows
    shown, answers, longer = view.column("first_shown"), view.column("answers"), view.column("chose_longer")
    words, seconds = view.column("words"), view.column("seconds")
    sided, compared, timed = (shown >= 0) & (view.verdict < TIE), longer >= 0, (seconds >= 0) & (words > 0)
    golden, passed = (view.measured(purpose) for purpose in (GOLD, QUALIFICATION))
    again, before = _repeats(view)

    everything = np.arange(len(rows))
    return {
        "left": (rows[sided], (view.verdict == shown)[sided], 1 / answers[sided]),
        "longer": (rows[compared], (longer == 1)[compared], None),
        "tie": (rows, (view.verdict == TIE)[everything], None),
        "both_bad": (rows, (view.verdict == BOTH_BAD)[everything], None),
        "too_fast": (rows[timed], (seconds < words / READING_WORDS_PER_S)[timed], None),
        "gold": _right(view, golden),
        "qualification": _right(view, passed),
        "consistency": (again, log["verdict"][again] == log["verdict"][before], None),
    }


def _right(view: _View, rows: np.ndarray) -> _Rate:
    """Labels of items with a known answer, and whether they agree with it."""
    log, codes = view.log, len(view.log.said)
    golden = np.zeros(log.items, dtype=bool)
    golden[list(view.known)] = True
    rows = rows[golden[log["item"][rows]]]
    # There are few gold items, and few different answers to each.
    key, index = np.unique(log["item"][rows].astype(np.int64) * codes + log["said"][rows], return_inverse=True)
    said = [json.loads(tiers) if tiers else None for tiers in log.said]
    right = [agrees(said[one % codes], view.known[one // codes]) for one in key.tolist()]
    return rows, np.array(right, dtype=bool)[index], None


def _repeats(view: _View) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the hidden repeats, and of what the same annotator had last said of the same item before it."""
    again, log, people = view.measured(REPEAT), view.log, len(view.names)
    repeated = np.zeros(log.items, dtype=bool)
    repeated[log["item"][again]] = True
    human = view.sources[log["who"]] if log.size else np.zeros(0, dtype=bool)
    work = np.flatnonzero(human & (log["kind"] == LABEL) & (log["purpose"] == WORK) & repeated[log["item"]])
    before, wanted = (log["item"][rows].astype(np.int64) * people + log["who"][rows] for rows in (work, again))
    order = np.lexsort((work, before))
    # Where the repeat would stand among them: behind all that was said of its item by its annotator until then.
    at = np.searchsorted(before[order] * log.size + work[order], wanted * log.size + again) - 1
    found = at >= 0
    found[found] = before[order][at[found]] == wanted[found]
    return again[found], work[order][at[found]]


def _mean(chance: np.ndarray | None) -> float | None:
    """None: there is no such thing. Of no labels it is a half."""
    return None if chance is None else float(chance.mean()) if len(chance) else 0.5


def _overall(view: _View, rates: Mapping[str, _Rate]) -> Figures:
    """Shares of all people's labels together."""
    found: Figures = {}
    for name, (rows, holds, chance) in rates.items():
        if name in ("longer", "tie", "both_bad"):  # what the items are like: labels of one item say the same of it
            found[name] = _json(agreement.share_over_items(view.log["item"][rows], holds))
        else:
            found[name] = _share(int(holds.sum()), len(rows), _mean(chance))
    return found


def _share(hits: float, n: int, chance: float | None = None) -> Figures:
    """A share of independent trials; where it has a value by chance, with the two-sided binomial p."""
    found: Figures = wilson(hits, n).estimate().plain() | {"note": None if n else NO_LABELS}
    if chance is not None:
        found |= {"chance": chance, "p": _binomial_p(int(hits), n, chance) if n else None}
    return found


def _binomial_p(hits: int, n: int, chance: float) -> float:
    """Twice the smaller tail."""
    from scipy.special import bdtr, bdtrc

    at_least = float(bdtrc(hits - 1, n, chance)) if hits else 1.0
    return min(1.0, 2 * min(float(bdtr(hits, n, chance)), at_least))


def _json(found: Agreement) -> Figures:
    return {
        "value": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "n": found.items,
        "labels": found.labels,
        "note": found.note,
    }


def _people(view: _View, rates: Mapping[str, _Rate], joined: Labels) -> list[Figures]:
    """One entry per annotator who is a person, most labels first."""
    number = len(view.names)
    labels = view.by_person(view.rows)
    counts = {
        "skips": view.by_person(view.of(SKIP)),
        "flags": view.by_person(view.of(FLAG)),
        "late": view.by_person(view.of(LATE)),
        "undone": view.by_person(view.of(UNDO)),
    }
    shares = {name: _shares(view, rate) for name, rate in rates.items()}
    seconds = _by_group(view.who, view.column("seconds"), number)
    last = np.full(number, -1, dtype=np.int64)
    if view.log.size:
        np.maximum.at(last, view.log["who"], view.log["created_ms"])
    same = _with_others(joined)
    same_hits, same_n = (np.bincount(joined.annotator, weights, number) for weights in (same, None))

    def one(code: int) -> Figures:
        timed = seconds[code][seconds[code] >= 0]
        return {
            "annotator": view.names[code],
            "labels": int(labels[code]),
            **{key: int(values[code]) for key, values in counts.items()},
            "seconds": float(np.median(timed)) if len(timed) else None,
            **{name: of[code] for name, of in shares.items()},
            "agreement": _share(float(same_hits[code]), int(same_n[code])),
            "last_utc": utc(int(last[code])),
        }

    return [one(code) for code in np.argsort(-labels, kind="stable") if view.sources[code] and last[code] >= 0]


def _shares(view: _View, rate: _Rate) -> list[Figures]:
    """A share of each annotator."""
    rows, holds, chance = rate
    who, number = view.log["who"][rows], len(view.names)
    hits, n = np.bincount(who, holds, number).astype(int), np.bincount(who, minlength=number)
    if chance is None:
        return [_share(k, of) for k, of in zip(hits.tolist(), n.tolist(), strict=True)]
    mean = np.where(n > 0, np.bincount(who, chance, number) / np.maximum(n, 1), 0.5)
    return [_share(k, of, p) for k, of, p in zip(hits.tolist(), n.tolist(), mean.tolist(), strict=True)]


def _with_others(joined: Labels) -> np.ndarray:
    """(N,) with which share of the other labels of its item a label is the same."""
    items = int(joined.item.max(initial=-1)) + 1
    cell = joined.item.astype(np.int64) * joined.values + joined.value
    equal, all_of_them = np.bincount(cell)[cell] if len(cell) else cell, np.bincount(joined.item, minlength=items)
    return (equal - 1) / (all_of_them[joined.item] - 1)


def _by_group(group: np.ndarray, values: np.ndarray, groups: int) -> list[np.ndarray]:
    """The values of each group."""
    order = np.argsort(group.astype(np.uint16), kind="stable")  # 16 bits: numpy sorts these in linear time
    return np.split(values[order], np.bincount(group, minlength=groups).cumsum()[:-1])


def _progress(view: _View, slots: Mapping[str, int], now_ms: int) -> Figures:
    """How far it is, how fast it goes, and when it will be done at this pace."""
    made, seconds = view.column("created_ms"), view.column("seconds")
    window = float(np.clip((now_ms - made.min()) / _HOUR_MS, 1 / 12, 1)) if len(made) else 1.0
    recent = made > now_ms - window * _HOUR_MS
    pace = float(recent.sum() / window)
    busy = len(np.unique(made // _HOUR_MS))
    left = slots.get("open", 0) + slots.get("leased", 0)
    timed = seconds[seconds >= 0]
    return {
        "labels": len(view.rows),
        "wanted": sum(slots.values()),
        "slots": {state: slots.get(state, 0) for state in ("open", "leased", "done")},
        "labels_per_hour": pace,
        "window_h": window,
        "labels_per_busy_hour": len(made) / busy if busy else None,
        "eta_h": left / pace if left and pace else 0.0 if not left else None,
        "annotators": int((view.by_person(view.rows) > 0).sum()),
        "annotators_now": len(np.unique(view.who[recent])),
        "seconds": float(np.median(timed)) if len(timed) else None,
    }


def _agreements(view: _View, joined: Labels, coefficients: bool) -> list[Figures]:
    """Agreement of all annotators together."""
    equal = ("Equal labels", "best answer", agreement.raw(joined))
    if not coefficients:
        return [{"measure": equal[0], "of": equal[1], **_json(equal[2])}]
    grades, two = view.grades(), len(np.unique(joined.annotator)) == 2
    rows = [
        equal,
        ("Krippendorff’s alpha, nominal", "best answer", agreement.krippendorff(joined)),
        ("Krippendorff’s alpha, ordinal", "strength", agreement.krippendorff(grades, "ordinal")),
        ("Fleiss’ kappa", "best answer", agreement.fleiss(joined)),
        ("Cohen’s kappa", "best answer", agreement.cohen(joined)),
        ("Cohen’s kappa, quadratic weights", "strength", agreement.cohen(grades, "quadratic")),
    ]
    graded = bool((view.column("strength") > 0).any())
    return [
        {"measure": name, "of": of, **_json(found)}
        for name, of, found in rows
        if (graded or of != "strength") and (two or not name.startswith("Cohen"))
    ]


def _pairs(view: _View, joined: Labels) -> list[Figures]:
    """Agreement of every two of the annotators with the most labels."""
    number, values = len(view.names), joined.values
    top = np.sort(np.argsort(-view.by_person(view.rows), kind="stable")[:_PAIRS_OF])
    kept = np.isin(joined.annotator, top)
    order = np.argsort(joined.item[kept], kind="stable")
    item, who, value = (column[kept][order] for column in (joined.item, joined.annotator, joined.value))
    rank = np.searchsorted(top, who)
    tables = np.zeros((len(top), len(top), values, values), dtype=np.int64)
    for step in range(1, min(number, len(top))):
        same = np.flatnonzero(item[step:] == item[:-step])
        if not len(same):
            break
        swap = rank[same] > rank[same + step]
        a, b = np.where(swap, same + step, same), np.where(swap, same, same + step)
        cells = ((rank[a] * len(top) + rank[b]) * values + value[a]) * values + value[b]
        tables += np.bincount(cells, minlength=tables.size).reshape(tables.shape)
    found = []
    for i in range(len(top)):
        for j in range(i + 1, len(top)):
            if items := int(tables[i, j].sum()):
                equal = _share(int(np.trace(tables[i, j])), items)
                kappa = _json(agreement.cohen_of_table(tables[i, j]))
                names = {"a": view.names[top[i]], "b": view.names[top[j]]}
                found.append({**names, "items": items, "equal": equal, "kappa": kappa})
    return found


def _programs(view: _View) -> list[Figures]:
    """How often people prefer the answer that a program does (a rubric, a judge, a reward model) on the same items."""
    log, found = view.log, []
    for (source, name), code in log.people.items():
        if source == "human":
            continue
        said = np.full(log.items, -1, dtype=np.int8)
        rows = np.flatnonzero((log["who"] == code) & log["alive"] & (log["kind"] == LABEL))
        said[log["item"][rows]] = log["verdict"][rows]
        both = (view.verdict < TIE) & (said[view.item] >= 0) & (said[view.item] < TIE)
        if both.any():
            share = agreement.share_over_items(view.item[both], (said[view.item] == view.verdict)[both])
            found.append({"source": source, "annotator": name, "same": _json(share)})
    return found


def _hours(view: _View) -> list[Figures]:
    """The last hours that had labels: how many, and by how many people."""
    hour = view.column("created_ms") // _HOUR_MS
    if not len(hour):
        return []
    recent = hour > hour.max() - _HOURS
    hours, labels = np.unique(hour[recent], return_counts=True)
    people = np.unique(hour[recent] * len(view.names) + view.who[recent]) // len(view.names)
    number = np.bincount(np.searchsorted(hours, people))
    return [
        {"hour_utc": utc(int(h) * _HOUR_MS), "labels": int(n), "annotators": int(a)}
        for h, n, a in zip(hours, labels, number, strict=True)
    ]


def step_width(labels: int) -> int:
    """Labels per step of the drift: 25, 50, 100, 200, 500, ... so that there are at most 24 steps."""
    width = 25
    for factor in (1, 2, 4, 8, 20, 40, 80, 200, 400, 800, 2000, 4000, 8000, 20000, 40000):
        width = 25 * factor
        if labels <= width * _STEPS:
            break
    return max(width, math.ceil(labels / _STEPS))


def _drift(view: _View) -> list[Figures]:
    """Shares and seconds over time, in steps of equally many labels."""
    width = step_width(len(view.rows))
    shown, longer, seconds = view.column("first_shown"), view.column("chose_longer"), view.column("seconds")
    found = []
    for start in range(0, len(view.rows), width):
        part = slice(start, start + width)
        verdict, timed = view.verdict[part], seconds[part][seconds[part] >= 0]
        sided, compared = (shown[part] >= 0) & (verdict < TIE), longer[part] >= 0
        found.append(
            {
                "first": start + 1,
                "last": min(start + width, len(view.rows)),
                "from_utc": utc(int(view.column("created_ms")[start])),
                "left": _share(int((verdict == shown[part])[sided].sum()), int(sided.sum())),
                "longer": _share(int((longer[part] == 1).sum()), int(compared.sum())),
                "tie": _share(int((verdict == TIE).sum()), len(verdict)),
                "seconds": float(np.median(timed)) if len(timed) else None,
            }
        )
    return found


def _history(view: _View) -> list[Figures]:
    """How wide the intervals were with fewer labels; not of large campaigns, whose next hundred change nothing."""
    number, longer = len(view.rows), view.column("chose_longer")
    if not 50 <= number <= 50_000:
        return []
    found = []
    for first in np.linspace(number / 8, number, 8).astype(int):
        compared = np.flatnonzero(longer[:first] >= 0)
        shares = {
            "agree": agreement.raw(view.labels(first)),
            "longer": agreement.share_over_items(view.item[compared], longer[compared] == 1),
        }
        halves = {
            key: (one.high - one.low) / 2 if one.high is not None and one.low is not None else None
            for key, one in shares.items()
        }
        found.append({"labels": int(first), **halves})
    return found


def _excluded(view: _View) -> list[Figures]:
    """What people did that is not among the labels, and why."""
    undone = view.sources[view.log["who"]] & ~view.log["alive"] if view.log.size else np.zeros(0, dtype=bool)
    undone &= ~np.isin(view.log["purpose"], (REPEAT, GOLD))  # what they measured stands
    rows = [
        ("Skipped", view.of(SKIP), "the pair goes to somebody else"),
        ("Flagged", view.of(FLAG), "the pair goes to somebody else; reasons below"),
        ("Late", view.of(LATE), "the lease had run out and somebody else had the pair; kept, not counted"),
        ("Taken back", np.flatnonzero(undone), "undone or replaced by the annotator"),
        ("Hidden repeats", view.measured(REPEAT), "measure consistency"),
        ("Gold items", view.measured(GOLD), "measure accuracy"),
        ("Qualification", view.of(LABEL, QUALIFICATION), "practice with feedback"),
    ]
    return [{"what": what, "events": len(found), "why": why} for what, found, why in rows]


def _flags(view: _View) -> list[Figures]:
    """Reasons of the flags that stand, most frequent first."""
    reasons = Counter(note.strip() or "(no reason given)" for row, note in view.log.flags if view.counted[row])
    return [{"reason": reason, "flags": number} for reason, number in reasons.most_common()]


def _findings(found: Figures) -> list[Figures]:
    """What an admin should look at: people whose figures chance does not explain, for so many people as there are."""
    people, notes = found["annotators"], []
    for one in people:
        name, left = one["annotator"], one["left"]
        if left["p"] is not None and left["p"] * len(people) < 0.05:
            side = f"takes the left answer in {100 * left['value']:.0f} % of {left['n']} labels"
            notes.append((name, f"{side}; chance gives {100 * left['chance']:.0f} %"))
        if one["too_fast"]["n"] >= 20 and one["too_fast"]["ci_low"] > 0.05:
            notes.append((name, f"is faster than anybody can read in {100 * one['too_fast']['value']:.0f} % of labels"))
        if one["gold"]["n"] >= 5 and one["gold"]["ci_high"] < 0.8:
            notes.append((name, f"gets {100 * one['gold']['value']:.0f} % of {one['gold']['n']} gold items right"))
        if one["consistency"]["n"] >= 5 and one["consistency"]["ci_high"] < 0.8:
            share = one["consistency"]
            notes.append((name, f"says the same again in {100 * share['value']:.0f} % of {share['n']} hidden repeats"))
    longer = found["overall"]["longer"]
    if longer["ci_low"] is not None and longer["ci_low"] > 0.6:
        notes.append(
            (None, f"The longer answer is chosen in {100 * longer['value']:.0f} % of pairs; a ruler could do that")
        )
    return [{"annotator": name, "message": message} for name, message in notes]


def utc(ms: int) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms >= 0 else None


# ---- Is another hundred labels worth buying? --------------------------------------------------------------------


def worth(found: Figures, reward: RewardCard | None) -> Figures:
    """What a hundred more labels would narrow, and what they cost.

    reward  its report card, if there is a reward model

    Both answers of a pair come from one policy, so labels here have no win rate between two policies. What they buy is
    certainty: how far people agree, which bounds what any reward model can learn, how far they follow length or the
    program whose labels are in the store, and, once there is one, how right the reward model is on held-out prompts.
    Intervals narrow with 1/sqrt(labels), as if further labels were like these.
    """
    labels, quantities = found["progress"]["labels"], []
    named = [
        ("agree", "People agree on the best answer", found["agreement"][0]),
        ("longer", "People choose the longer answer", found["overall"]["longer"]),
        *(("program", f"People agree with {one['annotator']}", one["same"]) for one in found["programs"]),
    ]
    for key, name, share in named:
        quantities.append({"key": key} | _quantity(name, share, labels))
    if reward is not None and reward.accuracy is not None:
        pairs = reward.pairs.train + reward.pairs.heldout
        name = "The reward model is right on held-out pairs"
        quantities.append({"key": "reward"} | _quantity(name, reward.accuracy.plain(), pairs))
    seconds = found["progress"]["seconds"]
    return {
        "more": MORE,
        "labels": labels,
        "hours": MORE * seconds / 3600 if seconds is not None else None,
        "reward_model": reward is not None,
        "quantities": quantities,
    }


def _quantity(name: str, share: Mapping[str, Any], labels: int) -> Figures:
    value, low, high = (share.get(key) for key in ("value", "ci_low", "ci_high"))
    half = (high - low) / 2 if value is not None and low is not None and high is not None else None
    known = half is not None and labels > 0
    return {
        "quantity": name,
        "share": {"value": value, "ci_low": low, "ci_high": high, "n": share.get("n", 0), "note": share.get("note")},
        "labels": labels,
        "half_width": half,
        "half_width_after": half * math.sqrt(labels / (labels + MORE)) if half is not None and known else None,
        "labels_to_bar": max(0, math.ceil(labels * (half / BAR) ** 2) - labels) if half is not None and known else None,
    }


# ---- One annotator's own ---------------------------------------------------------------------------------------


def mirror(store: Database, annotator: str) -> Figures:
    """An annotator's own figures, and nobody else's: what they may want to watch.

    Hidden checks count in them like any other pair, and nothing that is measured by checks alone is among them: a
    figure that moved for one kind of pair and not for another would tell which it was.
    """
    log = Log(annotator)
    with store.read() as db:
        while log.read(db, newest=None) == CHUNK:
            pass
    view = _View(log, {}, (WORK, REPEAT, GOLD))
    rates = _rates(view)
    seconds = view.column("seconds")
    timed = seconds[seconds >= 0]
    shares = {name: _share(int(rates[name][1].sum()), len(rates[name][0]), _mean(rates[name][2])) for name in MIRRORED}
    return {
        "labels": len(view.rows),
        "skips": len(view.of(SKIP)),
        "seconds": float(np.median(timed)) if len(timed) else None,
        "labels_per_hour": 3600 / float(np.median(timed)) if len(timed) and np.median(timed) > 0 else None,
        **shares,
    }


MIRRORED = ("left", "longer", "tie")
