"""Where labels come from. Each source puts what it says into the store; the label stage exports from there.

human         the browser: here only the pairs to ask about, and whether enough are answered
simulated     a named rubric ranks all K answers of a prompt
import        rankings in somebody else's file
judge         a model behind an HTTP endpoint compares the pairs that people would be shown
reward_model  a sequence-classification model scores all K answers of a prompt
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations, groupby
from typing import Any

from trueup.console import progress, say
from trueup.errors import DataError, LabelsWanted
from trueup.records import Candidate, CandidateSet, Dropped, split_name
from ui.config import LabelConfig, Source
from ui.store import Item, Store, Text, Tiers, Verdict

# ---- What there is to judge -------------------------------------------------------------------------------------


@dataclass
class Material:
    """The items of the current candidates. Labels about anything else in the store are left alone."""

    whole: list[Item] = field(default_factory=list)
    """Each prompt with all K answers."""
    pairs: list[Item] = field(default_factory=list)
    """The pairs that people and the judge are asked about, in that order."""
    other_pairs: list[Item] = field(default_factory=list)
    """Pairs of the same answers that were not chosen this time; labels they have from before still hold."""
    imported: list[str] = field(default_factory=list)
    """Item ids of the imported file."""
    identical: int = 0
    """Pairs with equal texts: nobody is asked about them."""

    def item_ids(self, source: Source) -> list[str]:
        if source == "import":
            return self.imported
        if source in ("human", "judge"):
            return [item.item_id for item in [*self.pairs, *self.other_pairs]]
        return [item.item_id for item in self.whole]


def material(config: LabelConfig, candidates: Sequence[CandidateSet]) -> Material:
    """Items for every prompt, and which pairs of its answers are asked about: a function of the seed and the prompt."""
    found = Material()
    order = sorted(candidates, key=lambda row: random.Random(f"{config.seed}/{row.prompt_id}").random())
    for row in order:  # shuffled, so that a queue that is half done covers every category
        found.whole.append(_item(row, row.candidates))
        pairs = list(combinations(row.candidates, 2))
        different = [pair for pair in pairs if pair[0].text.split() != pair[1].text.split()]
        found.identical += len(pairs) - len(different)
        random.Random(f"{config.seed}/{row.prompt_id}/pairs").shuffle(different)
        items = [_item(row, list(pair)) for pair in different]
        found.pairs += items[: config.pairs_per_prompt]
        found.other_pairs += items[config.pairs_per_prompt :]
    return found


def _item(row: CandidateSet, answers: list[Candidate]) -> Item:
    return Item(row.prompt, list(answers), row.category, row.split, row.sampler)


def tiers_of(scores: Sequence[float]) -> Tiers:
    """Best first; equal scores are ties."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return [list(tier) for _, tier in groupby(order, key=lambda index: scores[index])]


# ---- Human ------------------------------------------------------------------------------------------------------


def ask_people(store: Store, found: Material) -> None:
    """Put the pairs into the queue that the labelling page works through."""
    store.set_queue(store.add_items(found.pairs))


def check_enough(config: LabelConfig, store: Store, found: Material) -> None:
    """Raise LabelsWanted while people have not labelled what the config asks for."""
    asked = [item.item_id for item in found.pairs]
    answered = store.answered("human", found.item_ids("human"))
    labels = sum(kinds.count("label") for kinds in answered.values())
    skips = sum(kinds.count("skip") for kinds in answered.values())
    open_pairs = len(set(asked) - answered.keys())
    if not asked:
        raise DataError("there is nothing to label: no two sampled answers to a prompt differ")
    wanted = config.labels_wanted
    if open_pairs == 0 if wanted is None else labels >= wanted:
        if labels == 0:
            raise LabelsWanted(f"all {len(asked)} pairs were skipped; take skips back with `u` on the labelling page")
        return
    there = f"{labels} labels of people so far ({skips} skipped)"
    if wanted is None:
        missing = f"{open_pairs} of {len(asked)} pairs wait for an answer"
    elif open_pairs == 0:
        change = "lower label.labels_wanted or raise label.pairs_per_prompt"
        missing = f"{wanted} are wanted, but every pair is answered: {change}"
    else:
        missing = f"{wanted} are wanted (label.labels_wanted), {open_pairs} of {len(asked)} pairs wait for an answer"
    how = "Open the labelling page with `trueup label CONFIG`; `trueup run CONFIG` goes on when the labels are there."
    raise LabelsWanted(f"{there}; {missing}.\n{how}")


# ---- Simulated --------------------------------------------------------------------------------------------------


def simulate(config: LabelConfig, store: Store, found: Material) -> None:
    """Rank every prompt's answers by the rubric: a stand-in for people, open to reading in trueup/rubric.py."""
    from trueup.rubric import RUBRICS

    rubric = RUBRICS[config.rubric]
    verdicts = []
    for item, item_id in zip(found.whole, store.add_items(found.whole), strict=True):
        scores = [rubric.score(item.prompt, answer.text, answer.finished) for answer in item.answers]
        verdicts.append(Verdict(item_id, tiers_of(scores)))
    added = store.put("simulated", config.programs["simulated"], verdicts)
    say(f"rubric {config.rubric}: {len(verdicts)} prompts ranked, {added} of them new or changed")


# ---- Import -----------------------------------------------------------------------------------------------------


def import_file(config: LabelConfig, store: Store, found: Material, dropped: Dropped) -> int:
    """Take over the rankings of `config.path`. Returns how many."""
    from trueup.formats import read_preferences

    assert config.path is not None
    by_annotator: dict[str, dict[str, Verdict]] = {}
    items = []
    for row in read_preferences(config.path, dropped):
        split = split_name(row.prompt, config.split)
        answers = [Text(completion) for completion in row.completions]
        item = Item(row.prompt, list(answers), row.category, split, {"file": config.path.name})
        said = by_annotator.setdefault(row.annotator, {})
        if item.item_id in said:
            dropped.add("same answers judged again by the same annotator")
            continue
        items.append(item)
        said[item.item_id] = Verdict(item.item_id, row.tiers, row.strength)
    if not items:
        raise DataError(f"{config.path}: no preference in it can be used (dropped: {dropped})")
    found.imported = list(dict.fromkeys(store.add_items(items)))
    for annotator, verdicts in by_annotator.items():
        store.put("import", annotator, verdicts.values())
    return sum(len(verdicts) for verdicts in by_annotator.values())


# ---- Reward model -----------------------------------------------------------------------------------------------


def score_by_model(config: LabelConfig, store: Store, found: Material) -> None:
    """Rank every prompt's answers by a reward model's score."""
    from trueup.chat import encode_completion
    from trueup.models import load_reward_model
    from trueup.sampling import score

    def tokens(item: Item, answer: Any) -> list[int]:
        """As sampled, if this tokenizer reads it so; a reward model from elsewhere reads the text."""
        if str(loaded.tokenizer.decode(answer.token_ids, skip_special_tokens=True)).strip() == answer.text.strip():
            return list(answer.token_ids)
        return encode_completion(loaded.tokenizer, item.prompt, answer.text, answer.finished)

    assert config.reward_model is not None
    loaded = load_reward_model(config.reward_model, config.model)
    prompts = [item.prompt for item in found.whole for _ in item.answers]
    rows = [tokens(item, answer) for item in found.whole for answer in item.answers]
    flat = iter(score(loaded, prompts, rows, on_progress=lambda done: progress(done, len(rows))))
    verdicts = []
    for item, item_id in zip(found.whole, store.add_items(found.whole), strict=True):
        verdicts.append(Verdict(item_id, tiers_of([next(flat) for _ in item.answers])))
    store.put("reward_model", config.programs["reward_model"], verdicts)
    say(f"reward model {config.reward_model}: {len(verdicts)} prompts ranked")


# ---- Counting ---------------------------------------------------------------------------------------------------


def skips(store: Store, found: Material, sources: Sequence[Source]) -> Counter[str]:
    """How many answers of each source were a skip."""
    return Counter(
        {
            source: sum(kinds.count("skip") for kinds in store.answered(source, found.item_ids(source)).values())
            for source in sources
        }
    )
