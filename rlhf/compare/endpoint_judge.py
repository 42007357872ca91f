"""A language model behind an endpoint as a judge of the comparison: what it says, and what may be made of that.

Each pair of answers is asked in both orders. A judge that takes the first answer whatever it says comes out at 50 %,
with its position bias beside it; a comparison without a verdict is NaN and counted by what went wrong.
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rlhf.compare.answers import Verdicts
from trueup.artifacts.reports import OwnFigures
from trueup.console import progress, say
from trueup.data.containers.appended import read_appended
from trueup.data.records import Candidate, CandidateSet, Row
from trueup.errors import ModelError
from trueup.judging.endpoint import CONCURRENT, Endpoint, EndpointError, in_parallel
from trueup.judging.question import SYSTEM, Mark, agreement, question, verdict
from trueup.runs import Finding
from trueup.statistics import intervals

MOST_WITHOUT_VERDICT = 0.2
"""Above this share of comparisons without a verdict the rest may be a choice of the judge's, not a sample."""
BIASED = 0.1
"""A share of first places this far from a half is worth a warning, if it is not chance."""
GIVE_UP_AFTER = 12
"""Questions in a row without any reply, after which no further one is asked."""


def endpoint_tables(
    endpoint: Endpoint,
    rows: Sequence[CandidateSet],
    reference: Sequence[Sequence[Candidate]],
    aligned: Sequence[Sequence[Candidate]],
    cache_path: Path,
    *,
    pairs_per_prompt: int = 1,
    seed: int = 0,
    confidence: float = 0.95,
    concurrent: int = CONCURRENT,
) -> Verdicts:
    """Have `pairs_per_prompt` pairs of answers to each prompt judged in both orders.

    reference, aligned  (P, K) answers
    cache_path          every reply is kept here as it comes, so an interrupted comparison asks nothing twice

    With the two policies swapped every table is 1 - its transpose, exactly. Raises ModelError where no question
    could ever be answered (a refused key, an unknown model); whatever else goes wrong is counted.
    """
    # (prompt, i, j, the question with the reference's answer first, the one with the aligned one's first)
    comparisons = []
    for p, row in enumerate(rows):
        texts = [candidate.text for candidate in reference[p]], [candidate.text for candidate in aligned[p]]
        for i, j in choose_pairs(*texts, pairs_per_prompt, f"{seed}/{row.prompt_id}"):
            r, a = texts[0][i], texts[1][j]
            comparisons.append((p, i, j, question(row.prompt, r, a), question(row.prompt, a, r)))
    tables = [np.full((len(answers), len(answers)), np.nan) for answers in reference]
    questions = dict.fromkeys(q for *_, there, back in comparisons if there != back for q in (there, back))
    replies = _Asker(endpoint, cache_path).ask(list(questions), concurrent)

    contradictions, problems = 0, Counter[str]()
    for p, i, j, there, back in comparisons:
        if there == back:
            tables[p][i, j] = 0.5
            continue
        first, second = replies[there], replies[back]
        if first.mark and second.mark:
            tables[p][i, j] = 1 - agreement(first.mark, second.mark)
            contradictions += first.mark == second.mark != "C"
        else:
            problems[first.problem or second.problem or ""] += 1
    marks = Counter(reply.mark for reply in replies.values())
    decisions = marks["A"] + marks["B"]
    bias = intervals.wilson(marks["A"], decisions, confidence) if decisions else None
    refused, cut, malformed = (problems.pop(kind, 0) for kind in ("refused", "cut", "malformed"))
    counts = {"refused": refused, "cut": cut, "malformed": malformed, **dict(sorted(problems.items()))}
    why = next((reply.text for reply in replies.values() if reply.problem in problems and reply.text), "")
    notes = _notes(endpoint.model, len(comparisons), contradictions, bias, counts, why)
    own = OwnFigures(
        comparisons=len(comparisons),
        contradictions=contradictions,
        position_bias=bias.estimate() if bias else None,
        refused=refused,
        cut=cut,
        malformed=malformed,
        failed=dict(sorted(problems.items())),
    )
    return Verdicts(tables, own, notes)


def choose_pairs(reference: Sequence[str], aligned: Sequence[str], count: int, salt: str) -> list[tuple[int, int]]:
    """`count` cells (i, j) of the table of one prompt's comparisons: row i the reference's answer, column j the other.

    The diagonal is left out for K > 1, where both answers share their random numbers. With the policies swapped the
    choice is the same pairs of texts: (i, j) and (j, i) come together, and where only one of them fits, the hash of
    their texts decides, which knows nothing of who said what. If those are the same two texts, both come: their
    questions are the same, and only both together favour neither side.
    """
    if len(reference) == 1:
        return [(0, 0)]
    places = [(i, j) for i in range(len(reference)) for j in range(i)]
    random.Random(salt).shuffle(places)
    cells: list[tuple[int, int]] = []
    for i, j in places:
        room = count - len(cells)
        if room < 1:
            break
        digests = {cell: _digest(salt, *sorted((reference[cell[0]], aligned[cell[1]]))) for cell in ((i, j), (j, i))}
        cells += [cell for cell, digest in digests.items() if room > 1 or digest == min(digests.values())]
    return cells


def _digest(*parts: str) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _notes(
    model: str,
    comparisons: int,
    contradictions: int,
    bias: intervals.Interval | None,
    without: dict[str, int],
    why: str,
) -> list[Finding]:
    """without  comparisons without a verdict by what went wrong
    why      the endpoint's own words on one that had no reply
    """
    notes = []
    total = sum(without.values())
    if total:
        of_these = ", ".join(f"{count} {kind}" for kind, count in without.items() if count)
        message = f"the judge {model} gave no verdict on {total} of {comparisons} comparisons ({of_these})"
        message += f" [{why}]" if why else ""
        if without.get("cut"):
            message += "; a reply that was cut has no verdict: raise judge_parameters.max_tokens"
        notes.append(without_verdict(message, total, comparisons))
    if bias is not None and bias.excludes(0.5) and abs(bias.value - 0.5) >= BIASED:
        place, share = ("first", bias.value) if bias.value > 0.5 else ("second", 1 - bias.value)
        message = (
            f"the judge {model} looks at the place: {share:.0%} of its decided verdicts went to the {place} of two "
            f"answers, whichever stood there. In {contradictions} of {comparisons} comparisons it contradicts itself; "
            "these count as ties and draw its win rate towards 50 %, so 50 % is no evidence of equality here"
        )
        notes.append(Finding("warn", "judge_position_bias", message))
    return notes


def without_verdict(message: str, without: int, total: int) -> Finding:
    """The finding on what a judge gave no verdict on: above MOST_WITHOUT_VERDICT it is not usable."""
    if without <= MOST_WITHOUT_VERDICT * total:
        return Finding("info", "judge_without_verdict", message)
    message += ": it is not usable here, since what it did judge may differ from what it did not"
    return Finding("warn", "judge_not_usable", message)


# ---- Asking -----------------------------------------------------------------------------------------------------


class _Reply(Row):
    """A line of the cache."""

    key: str
    mark: Mark | None
    problem: str | None
    """Why there is no mark."""
    text: str = ""


class _Asker:
    """Asks each question once, ever: replies are appended to a file, from which a later call takes them."""

    def __init__(self, endpoint: Endpoint, cache_path: Path):
        self.endpoint, self.path = endpoint, cache_path
        self.lock = threading.Lock()
        self.in_vain = 0
        """Questions in a row that had no reply."""
        self.replies = {reply.key: reply for reply in read_appended(cache_path, _Reply)}

    def ask(self, questions: Sequence[str], concurrent: int) -> dict[str, _Reply]:
        """The reply to each question. Only replies are kept: what failed may succeed another time."""
        keys = {text: _digest(json.dumps(self.endpoint.request(SYSTEM, text), sort_keys=True)) for text in questions}
        new = [text for text in questions if keys[text] not in self.replies]
        say(f"judge {self.endpoint.model}: {len(new)} questions, {len(questions) - len(new)} answered before")
        replies = in_parallel(lambda text: self._ask(keys[text], text), new, concurrent)
        for count, reply in enumerate(replies, start=1):
            self.replies[reply.key] = reply
            progress(count, len(new))
        return {text: self.replies[keys[text]] for text in questions}

    def _ask(self, key: str, text: str) -> _Reply:
        if self.in_vain >= GIVE_UP_AFTER:
            return _Reply(key=key, mark=None, problem="not asked any more")
        try:
            answer = self.endpoint.ask(SYSTEM, text)
        except EndpointError as error:
            if error.hopeless:
                raise ModelError(f"judge at {error}. Replies so far are kept in {self.path}: run again") from None
            with self.lock:
                self.in_vain += 1
            return _Reply(key=key, mark=None, problem=error.kind, text=str(error))
        mark, problem = verdict(answer)
        reply = _Reply(key=key, mark=mark, problem=problem, text=answer.text[:1000])
        with self.lock:
            self.in_vain = 0
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(reply.model_dump()) + "\n")  # ASCII: a reply may hold half a surrogate pair
        return reply
