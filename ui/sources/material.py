"""Sources of labels. Each source writes its labels to the store, and the label stage exports from there.

human         the browser: here only the queue, its order, and whether there are enough labels
simulated     a named rubric ranks all K answers of a prompt
import        rankings in a file
judge         a model behind an HTTP endpoint compares the pairs that people would be shown
reward_model  a sequence-classification model scores all K answers of a prompt
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from math import comb
from pathlib import Path
from typing import Any, Literal

from trueup.console import progress, say
from trueup.data.formats import read_preferences
from trueup.data.records import (
    Candidate,
    CandidateScores,
    CandidateSet,
    Dropped,
    parse_row,
    prompt_id,
    read_jsonl,
    shuffled,
)
from trueup.data.split import split_name
from trueup.errors import DataError, LabelsPending
from trueup.runs import find_stage
from ui.labels.config import LabelConfig, Source
from ui.labels.exchange import take_over
from ui.labels.items import Gold, Item, ProgramLabel, QueueEntry, Text
from ui.labels.judgements import Tiers, agrees, as_read
from ui.labels.store import Store
from ui.sources import selection

MOST_RANKED = 9
"""Answers that one person can put in order."""


# ---- What there is to judge -------------------------------------------------------------------------------------


@dataclass
class Material:
    """The items of the current candidates. Labels of other items in the store are left alone."""

    whole: list[Item] = field(default_factory=list)
    """Each prompt with all K answers."""
    asked: list[Item] = field(default_factory=list)
    """Items for people, in this order if it is random. The judge gets them too if they are pairs."""
    other: list[Item] = field(default_factory=list)
    """Pairs of the same answers that were not chosen this time; their earlier labels still count."""
    chance: list[float] = field(default_factory=list)
    """The probability of each item of `asked` to be drawn from its prompt's pairs."""
    uncertainty: dict[str, float] = field(default_factory=dict)
    """The reward model's uncertainty about a pair, in [0, 1], by item id, if there are scores."""
    heads: int = 0
    """Heads of the reward model whose disagreement that is; 0: it has one score alone."""
    imported: list[str] = field(default_factory=list)
    """Item ids of the imported file."""
    identical: int = 0
    """Number of pairs with equal texts, which nobody labels."""
    labelled: Collection[str] = ()
    """Ids of items that another round has labels of."""

    source: Source = "human"
    """Who labels, other sources aside that are used too."""
    limit: int | None = None
    """Number of items that the source labels, if it is a program. None: all."""

    def for_program(self, source: Source) -> list[Item]:
        """The items that a program labels: pairs for a judge, whole prompts for the others."""
        items = self.asked if source == "judge" else self.whole
        return items[: self.limit] if source == self.source else items

    def item_ids(self, source: Source) -> list[str]:
        """The items whose labels of a source count."""
        if source == "import":
            return self.imported
        if source == "human" or (source == "judge" and (source != self.source or self.limit is None)):
            return [item.item_id for item in [*self.asked, *self.other]]
        return [item.item_id for item in self.for_program(source)]


PromptScores = Mapping[str, CandidateScores]
"""prompt_id: what a reward model says of each answer."""


def material(
    config: LabelConfig,
    candidates: Sequence[CandidateSet],
    scores: PromptScores | None = None,
    labelled: Collection[str] = (),
) -> Material:
    """Items for every prompt, and the choice of those to ask about, which depends on the seed and the prompt alone.

    labelled  ids of items that another round has labels of: nobody is asked about them again
    """
    items = Material(labelled=labelled, source=config.source, limit=config.target_labels)
    for row in shuffled(candidates, config.seed):  # so that a queue that is half done covers every category
        if (whole := _item(row, row.candidates)).item_id not in labelled:
            items.whole.append(whole)
        rng = random.Random(f"{config.seed}/{row.prompt_id}/pairs")
        if config.task == "ranking":
            _to_rank(row, config.answers_per_item, rng, items)
        else:
            _to_compare(row, config.pairs_per_prompt, rng, items, scores.get(row.prompt_id) if scores else None)
    if items.heads:  # in bits so far, which are few everywhere if the heads are near each other
        most = max(items.uncertainty.values(), default=0.0)
        items.uncertainty = {name: bits / (most or 1.0) for name, bits in items.uncertainty.items()}
    return items


def _to_compare(
    row: CandidateSet, asked_about: int, rng: random.Random, items: Material, scores: CandidateScores | None
) -> None:
    pairs = list(combinations(range(len(row.candidates)), 2))
    texts = [as_read(candidate.text) for candidate in row.candidates]
    different = [(i, j) for i, j in pairs if texts[i] != texts[j]]
    items.identical += len(pairs) - len(different)
    rng.shuffle(different)
    every = {(i, j): _item(row, [row.candidates[i], row.candidates[j]]) for i, j in different}
    different = [places for places, item in every.items() if item.item_id not in items.labelled]
    in_pairs = [every[places] for places in different]
    share = in_pairs[:asked_about]
    items.asked += share
    items.other += in_pairs[asked_about:]
    items.chance += [len(share) / len(in_pairs) for _ in share]
    if scores is None:
        return
    for item, (i, j) in zip(in_pairs, different, strict=True):
        one, other = scores.scores[i], scores.scores[j]
        heads, others = (scores.heads[i], scores.heads[j]) if scores.heads else (None, None)
        if heads and others:
            items.heads = len(heads)
            margins = [a - b for a, b in zip(heads, others, strict=True)]
            items.uncertainty[item.item_id] = selection.information(margins)
        elif one is not None and other is not None:
            items.uncertainty[item.item_id] = selection.uncertainty(one, other)


def _to_rank(row: CandidateSet, at_once: int | None, rng: random.Random, items: Material) -> None:
    distinct = {as_read(candidate.text): candidate for candidate in row.candidates}
    items.identical += len(row.candidates) - len(distinct)
    answers = list(distinct.values())
    number = min(at_once or MOST_RANKED, len(answers))
    item = _item(row, rng.sample(answers, number))
    if number > 1 and item.item_id not in items.labelled:
        items.asked.append(item)
        items.chance.append(1.0)


def _item(row: CandidateSet, answers: list[Candidate]) -> Item:
    return Item(row.prompt, list(answers), row.category, row.split, row.sampler)


def tiers_of(scores: Sequence[float]) -> Tiers:
    """Tiers by score, best first; equal scores are ties."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [list(tier) for _, tier in groupby(order, key=lambda index: scores[index])]


# ---- Human ------------------------------------------------------------------------------------------------------


def ask_people(config: LabelConfig, store: Store, items: Material) -> None:
    """Fill the queue of the labelling page."""
    ids = store.add_items(items.asked)
    if config.selection == "random":
        queue = selection.uniform(ids, items.chance)
    else:
        queue = _by_uncertainty(config, store, items)
    store.ask(queue, config.labels_per_pair, number=config.round)


def ask_meanwhile(
    config: LabelConfig, store: Store, answered: Sequence[CandidateSet], prompts: int, begins: bool
) -> int:
    """Put the pairs of further answered prompts into the queue, while others of the `prompts` are still sampled.
    Returns their number. A draw by uncertainty is one over all pairs, so until then nobody is asked."""
    items = material(config, answered) if config.selection == "random" else Material()
    queue = selection.uniform(store.add_items(items.asked), items.chance)
    if begins:
        each = comb(len(answered[0].candidates), 2) if config.task == "pairs" else 1
        store.ask(
            queue, config.labels_per_pair, expected=prompts * min(config.pairs_per_prompt, each), number=config.round
        )
    else:
        store.ask_more(queue, config.labels_per_pair)
    return len(queue)


def _by_uncertainty(config: LabelConfig, store: Store, items: Material) -> list[QueueEntry]:
    """As many pairs as a random queue would have, out of all pairs of all prompts.

    Pairs that people have begun stay in the queue and come first, with the selection that chose them.
    """
    pool = {item.item_id: item for item in [*items.asked, *items.other]}
    votes, before = store.votes(), store.asked()
    disagreements = {name: selection.disagreement(list(votes[name].values())) for name in pool if name in votes}
    contested: dict[str, list[float]] = {}
    for name, value in disagreements.items():
        contested.setdefault(prompt_id(pool[name].prompt), []).append(value)

    def open_by_people(item: Item) -> float:
        values = contested.get(prompt_id(item.prompt), [])
        return sum(values) / len(values) if values else 0.0

    weights = {
        name: selection.weight(items.uncertainty.get(name, 0.5), open_by_people(item))
        for name, item in pool.items()
        if name not in disagreements
    }
    # The draw depends on the labels so far, and is the same for the same labels.
    rng = random.Random(f"{config.seed}/selection/{sorted(disagreements)}")
    entries = selection.draw(weights, max(0, len(items.asked) - len(disagreements)), config.control_share, rng)
    store.add_items([pool[one.item_id] for one in entries])
    first = sorted(disagreements, key=lambda name: -disagreements[name])
    say(f"selection: {_reason(config, items)}")
    return [before.get(name, QueueEntry(name, "random", 1.0)) for name in first] + entries


def _reason(config: LabelConfig, items: Material) -> str:
    """What makes a pair come early."""
    if config.scores is None and not items.uncertainty:
        return "no scores of a reward model; pairs are weighted by people's disagreement alone"
    if items.heads:
        return f"pairs on which the reward model's {items.heads} heads disagree come first (reward.ensemble)"
    return "pairs that the reward model puts near 50 % come first: it has one head (reward.ensemble)"


def read_scores(path: Path, candidates: Sequence[CandidateSet]) -> PromptScores:
    """Scores of the sampled completions; DataError unless they are one finite number for each of a prompt, or null
    for an answer that the reward model cannot read."""
    answers = {row.prompt_id: len(row.candidates) for row in candidates}
    scores: dict[str, CandidateScores] = {}
    sizes: set[int] = set()
    for number, values in read_jsonl(path):
        row = parse_row(CandidateScores, values, f"{path}:{number}")
        count = answers.get(row.prompt_id)
        if count is not None and len(row.scores) != count:
            raise DataError(f"{path}:{number}: scores: {len(row.scores)} for {count} sampled answers")
        heads = row.heads or [None] * len(row.scores)
        sizes |= {len(one or ()) for one, score in zip(heads, row.scores, strict=False) if score is not None}
        if len(sizes) > 1 or len(heads) != len(row.scores):
            raise DataError(f"{path}:{number}: heads: every answer with a score needs as many heads as the others")
        scores[row.prompt_id] = row
    if missing := answers.keys() - scores.keys():
        raise DataError(f"{path}: no scores for {len(missing)} of {len(answers)} prompts; score the current answers")
    return scores


# ---- Known answers ----------------------------------------------------------------------------------------------


def set_gold(config: LabelConfig, store: Store, use: Literal["check", "qualification"], dropped: Dropped) -> int:
    """Write the config's items with known answers to the store. Returns their number."""
    path = config.gold if use == "check" else config.qualification
    items, gold = known_answers(config, path, dropped) if path else ([], [])
    store.add_items(items)
    store.set_gold(use, gold)
    return len(gold)


def known_answers(config: LabelConfig, path: Path, dropped: Dropped) -> tuple[list[Item], list[Gold]]:
    """The items of a file, and their known answers; a DataError if none can be used."""
    gold: dict[str, Gold] = {}
    contradicted = set()
    items = []
    for row in read_preferences(path, dropped, config.on_bad_rows, config.ignore_columns):
        tiers, completions = row.tiers, row.completions
        if config.task == "pairs" and len(completions) > 2:  # the best and the worst of a ranking
            best, worst = row.tiers[0][0], row.tiers[-1][-1]
            tiers = [[0, 1]] if len(row.tiers) == 1 else [[0], [1]]
            completions = [row.completions[best], row.completions[worst]]
        texts: list[Any] = [Text(text).kept_apart() for text in completions]
        if len({as_read(text.text) for text in texts}) < len(texts):
            dropped.add("identical answers")
            continue
        if len(completions) > MOST_RANKED:
            dropped.add(f"more than {MOST_RANKED} answers")
            continue
        part = split_name(row.prompt, config.split)
        item = Item(row.prompt, texts, row.category, part, {"file": path.name})
        if item.item_id in gold and not agrees(gold[item.item_id].tiers, tiers):
            contradicted.add(item.item_id)
        gold.setdefault(item.item_id, Gold(item.item_id, tiers, row.explanation))
        items.append(item)
    if contradicted:
        dropped.add("its annotators contradict each other", len(contradicted))
    usable = [one for name, one in gold.items() if name not in contradicted]
    if not usable:
        raise DataError(f"{path}: no known answer in it can be used (dropped: {dropped})")
    return items, usable


# ---- Enough? ----------------------------------------------------------------------------------------------------


def check_enough(store: Store, items: Material, labels_per_pair: int, target: int | None) -> None:
    """Raise LabelsPending while people have not labelled what the config asks for."""
    queue = store.asked()
    answered = store.answered("human", items.item_ids("human"))
    labels = sum(kinds.count("label") for kinds in answered.values())
    skips = sum(kinds.count("skip") + kinds.count("flag") for kinds in answered.values())
    open_pairs = sum(len(answered.get(name, [])) < labels_per_pair for name in queue)
    if not queue:
        raise DataError("there is nothing to label: no two sampled answers to a prompt differ")
    if open_pairs == 0 if target is None else labels >= target:
        if labels == 0:
            raise LabelsPending(f"all {len(queue)} pairs were skipped; take skips back with `u` on the labelling page")
        return
    state = f"{labels} labels of people so far ({skips} skipped)"
    if target is None:
        missing = f"{open_pairs} of {len(queue)} pairs wait for a label"
    elif open_pairs == 0:
        change = "lower label.target_labels (or labels_per_round) or raise label.pairs_per_prompt"
        missing = f"{target} are needed, but every pair is labelled: {change}"
    else:
        waits = f"{open_pairs} of {len(queue)} pairs wait for a label"
        missing = f"{target} are needed (label.target_labels, or labels_per_round), {waits}"
    how = "Open the labelling page with `trueup label CONFIG`; `trueup run CONFIG` continues with enough labels."
    raise LabelsPending(f"{state}; {missing}.\n{how}")


# ---- Simulated --------------------------------------------------------------------------------------------------


def simulate(name: str, annotator: str, store: Store, items: Material) -> None:
    """Rank every prompt's completions by a rubric (trueup/data/rubric.py), as a stand-in for people."""
    from trueup.data.rubric import load_rubric

    rubric = load_rubric(name)
    labels = []
    whole = items.for_program("simulated")
    for item, item_id in zip(whole, store.add_items(whole), strict=True):
        scores = [rubric.score(item.prompt, answer.text, answer.finished) for answer in item.answers]
        labels.append(ProgramLabel(item_id, tiers_of(scores)))
    added = store.put("simulated", annotator, labels)
    say(f"rubric {rubric.name}: {len(labels)} prompts ranked, {added} of them new or changed")


# ---- Import -----------------------------------------------------------------------------------------------------


def import_file(config: LabelConfig, store: Store, items: Material, dropped: Dropped) -> int:
    """Import the labels of `config.path`. Returns their number."""
    assert config.path is not None
    rows = read_preferences(config.path, dropped, config.on_bad_rows, config.ignore_columns, config.choice(config.seed))
    imported = take_over(store, config.path, rows, dropped, config.split, config.round)
    items.imported = imported.item_ids
    return imported.labels


# ---- Reward model -----------------------------------------------------------------------------------------------


def score_by_model(config: LabelConfig, store: Store, items: Material) -> str | None:
    """Rank every prompt's answers by a reward model's score. A prompt with an answer that it cannot read is skipped.
    Returns what was chosen for its tokenizer."""
    from trueup.models.loading import load_scorer, read_tokenizer
    from trueup.models.scoring import conversion, score_sets_by_heads
    from trueup.models.templates.ends import choice_of

    assert config.scorer is not None
    loaded, _ = load_scorer(config.scorer, config.headless)
    if (sft := find_stage(config.run_dir, "sft")) is not None:
        converted = conversion(loaded.tokenizer, read_tokenizer(sft.dir / "model", config.model))
        if converted:
            say(f"{'reward model':<12} {converted}")
    whole = items.for_program("reward_model")
    every = score_sets_by_heads(loaded, [item.prompt for item in whole], [item.answers for item in whole], progress)
    labels = []
    for item_id, scores in zip(store.add_items(whole), every, strict=True):
        read = [one.score for one in scores if one is not None]
        labels.append(ProgramLabel(item_id, tiers_of(read) if len(read) == len(scores) else None))
    skipped = sum(label.tiers is None for label in labels)
    aside = f", {skipped} skipped: it cannot read one of their answers" if skipped else ""
    store.put("reward_model", config.programs["reward_model"], labels)
    say(f"reward model {config.reward_model}: {len(labels) - skipped} prompts ranked{aside}")
    return choice_of(loaded.tokenizer)
