"""Blind votes on a comparison: one answer of the SFT policy against one of the aligned policy, to held-out prompts.

A vote is a label like any other, drawn, recorded and counted by the same service, but in a store of its own beside the
stages (`runs/NAME/votes.sqlite`). Nothing that trains reads that file, so no vote becomes a training preference by
accident; `trueup labels promote` copies them into the campaign's labels, and says what that means. A comparison that
runs again leaves the votes alone: those on texts that are gone stay in the store, and are counted as such.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, get_args

import sqlalchemy as sa

from trueup import runs
from trueup.artifacts.reports import ComparisonFigures, Estimate
from trueup.console import say
from trueup.data.records import Message, Prompt, Row, parse_row, read_jsonl
from trueup.data.split import split_name
from trueup.errors import DataError, RunError
from trueup.judging.votes import VOTES, Policy, Vote, current, read_votes, text_sha256
from trueup.runs import read_report
from trueup.stages import campaign_dir, command, round_dirs
from trueup.statistics import win_rates
from ui.labels.config import LabelConfig
from ui.labels.items import Item, QueueEntry, Text
from ui.labels.judgements import as_read
from ui.labels.service import LabelService
from ui.labels.store import Store, superseded
from ui.labels.tables import TableRow, event, guideline, item
from ui.labels.tasks import Settings

VOTES_PER_PAIR = 20
"""Most people who may vote on one pair. Every pair gets its first vote before any gets a second."""
RESAMPLES = 2_000
"""Resamples of the running figure's interval, which is drawn again after every vote."""
_PROMOTED = "promoted"
_VOTED_ON = get_args(Policy)
PolicyOrigins = Mapping[str, Mapping[str, str]]
"""By policy, what the provenance of its completions says besides the policy's name."""

# ---- What people vote on ----------------------------------------------------------------------------------------


class _Completion(Row):
    text: str
    finished: bool = True
    reasoning: str = ""


class ComparedPrompt(Prompt):
    """The parts of a row of compare/samples.jsonl that votes need."""

    sft: list[_Completion]
    aligned: list[_Completion]


def read_compared(samples: Path) -> list[ComparedPrompt]:
    """The rows of a comparison; DataError with file and line where one has not both policies' answers."""
    return [parse_row(ComparedPrompt, values, f"{samples}:{number}") for number, values in read_jsonl(samples)]


def pairs_to_vote_on(rows: Sequence[ComparedPrompt], policies: PolicyOrigins) -> list[Item]:
    """One pair of answers to each prompt, in a random order of the prompts.

    Which pair and which place in the order follow from hashes, so that the same comparison always gives the same. A
    prompt to which both policies' answers read the same gives none: nobody is asked what cannot be told apart.
    policies: what else the provenance of each policy's answers shall say
    """
    pairs = ((row, _pair(row)) for row in sorted(rows, key=lambda row: row.prompt_id))
    return [_item(row, *pair, policies) for row, pair in pairs if pair is not None]


def _pair(row: ComparedPrompt) -> tuple[int, int] | None:
    """Indices of the SFT policy's and of the aligned policy's answer. The k-th against the k-th is no fair comparison
    where there are others: both were sampled with the same random numbers (see
    trueup.statistics.win_rates.outcomes)."""
    answers = range(len(row.sft)), range(len(row.aligned))
    one_each = len(row.sft) == len(row.aligned) == 1
    pairs = [
        (i, j)
        for i, j in product(*answers)
        if (i != j or one_each) and as_read(row.sft[i].text) != as_read(row.aligned[j].text)
    ]
    chance = {pair: hashlib.sha256(f"{row.prompt_id}/{pair[0]}/{pair[1]}".encode()).digest() for pair in pairs}
    return min(pairs, key=chance.__getitem__, default=None)


def _item(row: ComparedPrompt, i: int, j: int, policies: PolicyOrigins) -> Item:
    sides: list[tuple[Policy, int, _Completion]] = [("sft", i, row.sft[i]), ("aligned", j, row.aligned[j])]
    answers = [
        {"policy": name, "index": index, "sha256": text_sha256(answer.text), **policies.get(name, {})}
        for name, index, answer in sides
    ]
    texts: list[Any] = [
        Text(answer.text, finished=answer.finished, reasoning=answer.reasoning) for _, _, answer in sides
    ]
    return Item(row.prompt, texts, row.category, "heldout", {"asked": "vote on a comparison", "answers": answers})


def _policies(folder: Path) -> PolicyOrigins:
    """Which models were compared, as the report says; it is written after the samples."""
    try:
        report = read_report(folder.parent, "compare", ComparisonFigures)
    except RunError:
        return {}
    policies = report.policies if report else {}
    return {name: {"manifest_sha256": one.manifest_sha256} for name, one in policies.items() if name in _VOTED_ON}


# ---- The running figure -----------------------------------------------------------------------------------------


class RunningRate(Estimate):
    """The share of all votes for the aligned policy, a tie as half, over prompts; the counts are of votes."""

    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class VoteFigures:
    """The figures of the votes so far, and the votes that do not count."""

    win_rate: RunningRate | None
    """Null while there are no votes."""
    votes: int
    voters: int
    pairs: int
    """Pairs to vote on."""
    identical: int
    """Prompts with the same completions of both policies, which nobody is asked about."""
    on_other_texts: int
    """Votes on texts that the comparison does not hold any more."""


def running_win_rate(votes: Sequence[Vote]) -> win_rates.WinRate | None:
    """The share of all votes for the aligned policy, a tie as half; None while there are none.

    The interval is over prompts: votes of several people on one pair stay together. It holds for whoever votes here,
    and for a number of votes fixed beforehand: to look until it leaves 50 % behind is to find chance.
    """
    groups: dict[str, list[float]] = {}
    for vote in votes:
        groups.setdefault(vote.prompt_id, []).append(vote.outcome)
    return win_rates.win_rate(list(groups.values()), resamples=RESAMPLES) if groups else None


# ---- The votes of a run -----------------------------------------------------------------------------------------


class Votes:
    """The vote store of a run and the service over it. It is made when somebody comes to vote, and not before."""

    def __init__(self, run_dir: Path, config: LabelConfig | None = None):
        """config: how the campaign is labelled: people vote by the guideline and the scale that they labelled by."""
        self.path = run_dir / VOTES
        self.samples = runs.stage_dir(run_dir, "compare") / "samples.jsonl"
        self.settings = Settings(reveal=True, guideline=LabelConfig.model_fields["guideline"].default)
        if config is not None:
            lease_s = 60 * config.lease_minutes
            self.settings = replace(self.settings, scale=config.scale, guideline=config.guideline, lease_s=lease_s)
        self.identical = 0
        """Prompts to which both policies gave the same answers: nobody is asked about them."""
        self._texts: dict[str, tuple[list[str], list[str]]] = {}
        self._service: LabelService | None = None
        self._of: tuple[int, ...] | None = None  # the file that the queue was made from
        self._lock = threading.Lock()

    @property
    def exist(self) -> bool:
        """Whether there is anything to vote on."""
        return self.samples.is_file()

    def service(self) -> LabelService:
        """The service over the comparison as it stands now; RunError while there is none."""
        with self._lock:
            try:
                state = self.samples.stat()
            except FileNotFoundError:
                again = command(self.samples.parent.parent, "compare")
                raise RunError(f"{self.samples}: not there; `{again}` makes it") from None
            of = (state.st_mtime_ns, state.st_size, state.st_ino)
            if self._service is None:
                self._service = LabelService(Store(f"sqlite:///{self.path}"), self.settings)
            if of != self._of:
                self._ask(self._service.store)
                self._of = of
            return self._service

    def _ask(self, store: Store) -> None:
        rows = read_compared(self.samples)
        items = pairs_to_vote_on(rows, _policies(self.samples.parent))
        self._texts = {
            row.prompt_id: ([answer.text for answer in row.sft], [answer.text for answer in row.aligned])
            for row in rows
        }
        self.identical = len(rows) - len(items)
        queue = [QueueEntry(name, "random", 1.0) for name in store.add_items(items)]
        store.ask(queue, VOTES_PER_PAIR, in_rounds=True)
        same = f"; {self.identical} prompts have the same answers of both policies" if self.identical else ""
        say(f"votes: {len(queue)} pairs to vote on{same}")

    def figures(self) -> VoteFigures:
        """The running win rate, for admins."""
        pairs = self.service().store.counts()[2]
        votes, on_other_texts = current(read_votes(self.path), self._texts)
        running = None
        if rate := running_win_rate(votes):
            counts = {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
            running = RunningRate(**dict(rate.interval.estimate()), **counts)
        return VoteFigures(
            win_rate=running,
            votes=len(votes),
            voters=len({vote.voter for vote in votes}),
            pairs=pairs,
            identical=self.identical,
            on_other_texts=on_other_texts,
        )

    def close(self) -> None:
        if self._service is not None:
            self._service.store.close()


# ---- Promotion --------------------------------------------------------------------------------------------------


def promote(config: LabelConfig) -> str:
    """Copy the votes on the last comparison that has any into the campaign's label store, as labels of the people who
    gave them.

    Each keeps its id, so that promoting again adds nothing, and its item's provenance says that it was a vote on a
    comparison, and whose the answers are. Which part of the data it belongs to is the split's say, as for any label.
    Votes on earlier comparisons that are no labels yet are counted.
    """
    voted = [folder for folder in round_dirs(config.run_dir) if (folder / VOTES).is_file()]
    if not voted:
        run_dir = campaign_dir(config.run_dir)
        raise DataError(f"{run_dir / VOTES}: there are no votes yet; people vote at `trueup serve {run_dir}`")
    *earlier, path = [folder / VOTES for folder in voted]
    events, items, guidelines = _given(path)
    if not events:
        raise DataError(f"{path}: holds no votes yet (a skip is none)")
    for row in items:
        row["split"] = split_name([Message(**turn) for turn in row["prompt"]], config.split)
    store = Store(config.store_url)
    try:
        for text in guidelines:
            store.add_guideline(text)
        added = _put(store, items, events, config.round)
        with store.read() as db:
            labels = set(db.scalars(sa.select(event.c.client_uuid)))
    finally:
        store.close()
    lines = _what_it_means(path, added, items, events)
    for before in earlier:
        if left := sum(row["client_uuid"] not in labels for row in _given(before)[0]):
            lines.append(
                f"{before}: {left} votes on an earlier comparison stay votes: the last one's alone are promoted"
            )
    if "human" not in config.sources:
        lines.append(f"label.source is {config.source}: they are exported once label.also_use names human")
    elif added:
        lines.append("the label stage is out of date now, and what was made from it: trueup run CONFIG")
    return "\n".join(lines)


def _given(path: Path) -> tuple[list[TableRow], list[TableRow], list[str]]:
    """The votes in a file, what they are about, and the guidelines that people had."""
    votes = Store(f"sqlite:///{path}")
    try:
        with votes.read() as db:
            events = [dict(row) for row in db.execute(sa.select(event).where(*_GIVEN)).mappings()]
            query = sa.select(item).where(item.c.item_id.in_(sa.select(event.c.item_id).where(*_GIVEN)))
            items = [dict(row) for row in db.execute(query).mappings()]
            return events, items, list(db.scalars(sa.select(guideline.c.text)))
    finally:
        votes.close()


_GIVEN = (event.c.source == "human", event.c.kind == "label", event.c.purpose == "work", ~superseded())


def _put(store: Store, items: list[TableRow], events: list[TableRow], number: int) -> int:
    """Put in what is not there yet, in one transaction. Returns how many votes that was."""
    before = promoted(store)
    with store.write() as db:
        known = set(db.scalars(sa.select(event.c.client_uuid).where(event.c.source == "human")))
        there = set(db.scalars(sa.select(item.c.item_id)))
        fresh = [row for row in events if row["client_uuid"] not in known]
        if new := [row for row in items if row["item_id"] not in there]:
            db.execute(item.insert(), new)
        for row in fresh:
            # Without a view: nobody was shown it here, and undo on the labelling page does not reach it.
            values = {key: value for key, value in row.items() if key != "event_id"}
            db.execute(event.insert(), values | {"view_token": None, "supersedes": None, "round": number})
    store.set_note(_PROMOTED, json.dumps(sorted({*before, *(row["item_id"] for row in items)})))
    return len(fresh)


def _what_it_means(path: Path, added: int, items: list[TableRow], events: list[TableRow]) -> list[str]:
    heldout = {row["item_id"] for row in items if row["split"] == "heldout"}
    kept_out = sum(row["item_id"] in heldout for row in events)
    people = len({row["annotator"] for row in events})
    lines = [
        f"{path}: {added} of {len(events)} votes promoted to labels (the others were labels already), by {people} "
        f"{'person' if people == 1 else 'people'}",
        f"{kept_out} of {len(events)} are of held-out prompts: nothing trains on them, and they serve to evaluate, as "
        "in the reward model's held-out accuracy",
    ]
    if train := len(events) - kept_out:
        lines.append(
            f"{train} are of prompts that the split does not hold out any more (it was changed after the comparison): "
            "what trains on labels will train on these"
        )
    return lines


def promoted(store: Store) -> list[str]:
    """Items of a label store whose labels were votes on a comparison."""
    return list(json.loads(store.note(_PROMOTED) or "[]"))
