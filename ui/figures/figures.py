"""Statistics of labelling: who labels, how fast, with which biases, and how well. Pure functions of a log's columns.

`ui.figures.view` decides which labels count; the others are counted separately.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from ui.figures import agreement
from ui.figures.agreement import LabelCodes
from ui.figures.log import CHUNK, FLAG, GOLD, LABEL, LATE, QUALIFICATION, REPEAT, SKIP, TIE, UNDO, WORK, Log
from ui.figures.over_time import drift, history, labels_by_hour
from ui.figures.schema import (
    AnnotatorFigures,
    Excluded,
    Figures,
    Flags,
    Look,
    Measure,
    Mirror,
    Program,
    ProgressFigures,
    ShareFigures,
    Two,
)
from ui.figures.view import HOUR_MS, Rate, View, as_share, by_chance, rates_of, share_of, utc
from ui.labels.judgements import Tiers
from ui.labels.tables import Database

_PAIRS_OF = 8
"""Number of annotators, those with the most labels, whose agreement is shown for every two: 28 pairs."""


def figures(
    log: Log, gold_answers: Mapping[int, Tiers], now_ms: int, slots: Mapping[str, int], coefficients: bool = True
) -> Figures:
    """All figures of the admin's page, as JSON.

    gold_answers  the known answers of gold items, see `known_answers`
    slots         numbers of open, leased and filled slots
    coefficients  add the coefficients of agreement to the share of equal labels
    """
    view = View(log, gold_answers)
    rates = rates_of(view)
    joined = view.labels()
    people = _people(view, rates, joined)
    overall = _overall(view, rates)
    return {
        "progress": _progress(view, slots, now_ms),
        "overall": overall,
        "annotators": people,
        "agreement": _agreements(view, joined, coefficients),
        "pairs": _pairs(view, joined),
        "programs": _programs(view),
        "hours": labels_by_hour(view),
        "drift": drift(view),
        "history": history(view),
        "excluded": _excluded(view),
        "flags": _flags(view),
        "findings": _findings(people, overall),
    }


def _overall(view: View, rates: Mapping[str, Rate]) -> dict[str, ShareFigures]:
    """Shares of all people's labels together."""
    shares: dict[str, ShareFigures] = {}
    for name, (rows, holds, chance) in rates.items():
        if name in ("longer", "tie", "both_bad"):  # properties of items: labels of one item are not independent
            shares[name] = as_share(agreement.share_over_items(view.log["item"][rows], holds))
        else:
            shares[name] = share_of(int(holds.sum()), len(rows), by_chance(chance))
    return shares


def _people(view: View, rates: Mapping[str, Rate], joined: LabelCodes) -> list[AnnotatorFigures]:
    """One entry per annotator who is a person, most labels first."""
    number = len(view.names)
    labels = view.by_person(view.rows)
    skips, flags, late, undone = (view.by_person(view.of(kind)) for kind in (SKIP, FLAG, LATE, UNDO))
    shares = {name: _shares(view, rate) for name, rate in rates.items()}
    seconds = _by_group(view.who, view.column("seconds"), number)
    last = np.full(number, -1, dtype=np.int64)
    if view.log.size:
        np.maximum.at(last, view.log["who"], view.log["created_ms"])
    same = _with_others(joined)
    same_hits, same_n = (np.bincount(joined.annotator, weights, number) for weights in (same, None))

    def one(code: int) -> AnnotatorFigures:
        timed = seconds[code][seconds[code] >= 0]
        return {
            "annotator": view.names[code],
            "labels": int(labels[code]),
            "skips": int(skips[code]),
            "flags": int(flags[code]),
            "late": int(late[code]),
            "undone": int(undone[code]),
            "seconds": float(np.median(timed)) if len(timed) else None,
            "left": shares["left"][code],
            "longer": shares["longer"][code],
            "tie": shares["tie"][code],
            "both_bad": shares["both_bad"][code],
            "too_fast": shares["too_fast"][code],
            "gold": shares["gold"][code],
            "qualification": shares["qualification"][code],
            "consistency": shares["consistency"][code],
            "agreement": share_of(float(same_hits[code]), int(same_n[code])),
            "last_utc": utc(int(last[code])),
        }

    return [one(code) for code in np.argsort(-labels, kind="stable") if view.sources[code] and last[code] >= 0]


def _shares(view: View, rate: Rate) -> list[ShareFigures]:
    """A share of each annotator."""
    rows, holds, chance = rate
    who, number = view.log["who"][rows], len(view.names)
    hits, n = np.bincount(who, holds, number).astype(int), np.bincount(who, minlength=number)
    if chance is None:
        return [share_of(k, of) for k, of in zip(hits.tolist(), n.tolist(), strict=True)]
    mean = np.where(n > 0, np.bincount(who, chance, number) / np.maximum(n, 1), 0.5)
    return [share_of(k, of, p) for k, of, p in zip(hits.tolist(), n.tolist(), mean.tolist(), strict=True)]


def _with_others(joined: LabelCodes) -> np.ndarray:
    """(N,) the share of the other labels of its item that are equal to a label."""
    items = int(joined.item.max(initial=-1)) + 1
    cell = joined.item.astype(np.int64) * joined.values + joined.value
    equal, all_of_them = np.bincount(cell)[cell] if len(cell) else cell, np.bincount(joined.item, minlength=items)
    return (equal - 1) / (all_of_them[joined.item] - 1)


def _by_group(group: np.ndarray, values: np.ndarray, groups: int) -> list[np.ndarray]:
    """The values of each group."""
    order = np.argsort(group.astype(np.uint16), kind="stable")  # 16 bits: numpy sorts these in linear time
    return np.split(values[order], np.bincount(group, minlength=groups).cumsum()[:-1])


def _progress(view: View, slots: Mapping[str, int], now_ms: int) -> ProgressFigures:
    """Progress, pace, and the time left at this pace."""
    created, seconds = view.column("created_ms"), view.column("seconds")
    window = float(np.clip((now_ms - created.min()) / HOUR_MS, 1 / 12, 1)) if len(created) else 1.0
    recent = created > now_ms - window * HOUR_MS
    pace = float(recent.sum() / window)
    busy = len(np.unique(created // HOUR_MS))
    missing = slots.get("open", 0) + slots.get("leased", 0)
    timed = seconds[seconds >= 0]
    return {
        "labels": len(view.rows),
        "target": sum(slots.values()),
        "slots": {"open": slots.get("open", 0), "leased": slots.get("leased", 0), "filled": slots.get("filled", 0)},
        "labels_per_hour": pace,
        "window_h": window,
        "labels_per_busy_hour": len(created) / busy if busy else None,
        "eta_h": missing / pace if missing and pace else 0.0 if not missing else None,
        "annotators": int((view.by_person(view.rows) > 0).sum()),
        "annotators_now": len(np.unique(view.who[recent])),
        "seconds": float(np.median(timed)) if len(timed) else None,
    }


def _agreements(view: View, joined: LabelCodes, coefficients: bool) -> list[Measure]:
    """Agreement of all annotators together."""
    equal = ("Equal labels", "best answer", agreement.raw(joined))
    if not coefficients:
        return [{"measure": equal[0], "of": equal[1], **as_share(equal[2])}]
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
        {"measure": name, "of": of, **as_share(result)}
        for name, of, result in rows
        if (graded or of != "strength") and (two or not name.startswith("Cohen"))
    ]


def _pairs(view: View, joined: LabelCodes) -> list[Two]:
    """Agreement of every two of the annotators with the most labels."""
    number, values = len(view.names), joined.values
    top = np.sort(np.argsort(-view.by_person(view.rows), kind="stable")[:_PAIRS_OF])
    in_top = np.isin(joined.annotator, top)
    order = np.argsort(joined.item[in_top], kind="stable")
    item, who, value = (column[in_top][order] for column in (joined.item, joined.annotator, joined.value))
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
    pairs: list[Two] = []
    for i in range(len(top)):
        for j in range(i + 1, len(top)):
            if items := int(tables[i, j].sum()):
                equal = share_of(int(np.trace(tables[i, j])), items)
                kappa = as_share(agreement.cohen_of_table(tables[i, j]))
                a, b = view.names[top[i]], view.names[top[j]]
                pairs.append({"a": a, "b": b, "items": items, "equal": equal, "kappa": kappa})
    return pairs


def _programs(view: View) -> list[Program]:
    """How often people prefer the same answer as a program (a rubric, a judge, a reward model) on the same items."""
    log = view.log
    programs: list[Program] = []
    for (source, name), code in log.people.items():
        if source == "human":
            continue
        verdicts = np.full(log.items, -1, dtype=np.int8)
        rows = np.flatnonzero((log["who"] == code) & log["alive"] & (log["kind"] == LABEL))
        verdicts[log["item"][rows]] = log["verdict"][rows]
        both = (view.verdict < TIE) & (verdicts[view.item] >= 0) & (verdicts[view.item] < TIE)
        if both.any():
            share = agreement.share_over_items(view.item[both], (verdicts[view.item] == view.verdict)[both])
            programs.append({"source": source, "annotator": name, "same": as_share(share)})
    return programs


def _excluded(view: View) -> list[Excluded]:
    """Events of people that are not among the labels, with the reason."""
    undone = view.sources[view.log["who"]] & ~view.log["alive"] if view.log.size else np.zeros(0, dtype=bool)
    undone &= ~np.isin(view.log["purpose"], (REPEAT, GOLD))  # measurements stay
    rows = [
        ("Skipped", view.of(SKIP), "the pair goes to somebody else"),
        ("Flagged", view.of(FLAG), "the pair goes to somebody else; reasons below"),
        ("Late", view.of(LATE), "the lease had run out and somebody else had the pair; kept, not counted"),
        ("Taken back", np.flatnonzero(undone), "undone or replaced by the annotator"),
        ("Hidden repeats", view.measured(REPEAT), "measure consistency"),
        ("Gold items", view.measured(GOLD), "measure accuracy"),
        ("Qualification", view.of(LABEL, QUALIFICATION), "practice with feedback"),
    ]
    return [{"what": what, "events": len(events), "why": why} for what, events, why in rows]


def _flags(view: View) -> list[Flags]:
    """Reasons of current flags, most frequent first."""
    reasons = Counter(note.strip() or "(no reason given)" for row, note in view.log.flags if view.counted[row])
    return [{"reason": reason, "flags": number} for reason, number in reasons.most_common()]


def _findings(people: list[AnnotatorFigures], overall: Mapping[str, ShareFigures]) -> list[Look]:
    """Findings for the admin: people whose figures chance does not explain, corrected for the number of people."""
    looks: list[tuple[str | None, str]] = []
    for one in people:
        name, left_share = one["annotator"], one["left"]
        p = left_share.get("p")
        if p is not None and p * len(people) < 0.05:
            side = f"takes the left answer in {_points(left_share)} % of {left_share['n']} labels"
            looks.append((name, f"{side}; chance gives {100 * left_share['chance']:.0f} %"))
        if _surely_above(one["too_fast"], 0.05, 20):
            looks.append((name, f"is faster than anybody can read in {_points(one['too_fast'])} % of labels"))
        if _surely_below(one["gold"], 0.8, 5):
            looks.append((name, f"gets {_points(one['gold'])} % of {one['gold']['n']} gold items right"))
        if _surely_below(one["consistency"], 0.8, 5):
            share = one["consistency"]
            looks.append((name, f"gives the same label again in {_points(share)} % of {share['n']} hidden repeats"))
    longer = overall["longer"]
    if _surely_above(longer, 0.6):
        looks.append((None, f"The longer answer is chosen in {_points(longer)} % of pairs: length may decide them"))
    return [{"annotator": name, "message": message} for name, message in looks]


def _surely_above(share: ShareFigures, limit: float, least: int = 0) -> bool:
    return share["n"] >= least and share["ci_low"] is not None and share["ci_low"] > limit


def _surely_below(share: ShareFigures, limit: float, least: int) -> bool:
    return share["n"] >= least and share["ci_high"] is not None and share["ci_high"] < limit


def _points(share: ShareFigures) -> str:
    return f"{100 * (share['value'] or 0):.0f}"


# ---- One annotator's own ----------------------------------------------------------------------------------------


def mirror(store: Database, annotator: str) -> Mirror:
    """An annotator's own figures.

    Hidden checks count in them like any other pair, and no figure comes from checks alone: a figure that moves for one
    kind of pair only would reveal which pairs are checks.
    """
    log = Log(annotator)
    with store.read() as db:
        while log.read(db, newest=None) == CHUNK:
            pass
    view = View(log, {}, (WORK, REPEAT, GOLD))
    rates = rates_of(view)
    seconds = view.column("seconds")
    timed = seconds[seconds >= 0]

    def share(name: str) -> ShareFigures:
        rows, holds, chance = rates[name]
        return share_of(int(holds.sum()), len(rows), by_chance(chance))

    return {
        "labels": len(view.rows),
        "skips": len(view.of(SKIP)),
        "seconds": float(np.median(timed)) if len(timed) else None,
        "labels_per_hour": 3600 / float(np.median(timed)) if len(timed) and np.median(timed) > 0 else None,
        "left": share("left"),
        "longer": share("longer"),
        "tie": share("tie"),
    }
