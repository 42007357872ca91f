"""Real people's labels: how well a small model learns them, with and without each thing that they say.

    python benchmarks/people.py DATA_DIR                      all three sets (DATA_DIR holds their folders)
    python benchmarks/people.py DATA_DIR --sets pandalm --features FOLDER    keeps the hidden states for the next time

The sets are PandaLM's test set (3 annotators, ties), fine-grained RLHF's questions with 4 answers (rankings with ties,
and ideal answers) and 100 trees of OpenAssistant (rankings). None has grades, so nothing here measures margins.

A linear head on frozen hidden states of the embedded model (20 of its 30 layers, mean over the answer) is fitted to
the loss of the reward model (reward/loss.py) over the rows that it trains on (reward/comparisons.py). Prompts are dealt
to 5 folds; each is held out once, and the ridge is chosen on the others. So every strict pair is judged by a head that
has not seen its prompt. Figures are accuracies by prompt with 95 % intervals over prompts, beside rules that read
nothing and a bag of words, which learn from the same prompts.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from reward.card.baselines import learn_baselines
from reward.card.ceiling import ceiling
from reward.card.shares import difference_over_prompts, half_for_ties, over_prompts, points
from reward.comparisons import Contrast, label_rows
from reward.config import RewardConfig
from reward.hidden import Place, read_features
from reward.loss import preference_loss, threshold_of
from reward.probe import folds_of_prompts
from trueup.data.annotators import votes_by_pair
from trueup.data.formats import ImportedRanking, read_preferences
from trueup.data.pairs import PairRule, choose_pairs, pairs_of, ties_of
from trueup.data.records import Dropped, Preference, Ranking, prompt_id, random_rows
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.statistics.intervals import Interval
from trueup.statistics.reliability import Votes, agreement_of, best_accuracy, label_weight, right_probabilities
from trueup.training.pairs import EncodedPair, choose_ties, encode_pairs

PLACE = Place(20, "mean over the answer")
RIDGES = (10.0, 1.0, 0.1)
MOST_TOKENS = 1024
FILES = {
    "pandalm": "pandalm/testset-v1.part.json",
    "finegrained_qa": "finegrained_qa/dev_feedback.part.json",
    "oasst": "oasst_en_100/en_100_tree.jsonl",
}

# ---- Labels -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    strict: list[Preference]
    ties: list[Preference]
    ideals: list[Preference]

    @property
    def all(self) -> list[Preference]:
        return [*self.strict, *self.ties, *self.ideals]


def read_labels(name: str, path: Path, most_prompts: int) -> Labels:
    """The labels of a set, with at most so many prompts."""
    dropped = Dropped()
    rows = read_preferences(path, dropped, "drop")
    ids = [prompt_id(row.prompt) for row in rows]
    kept = set(random_rows(sorted(set(ids)), most_prompts, 0))
    rankings = [ranking(row, number) for number, row in enumerate(rows) if ids[number] in kept]
    print(
        f"{name}: {len(rankings)} labels of {len(kept)} prompts (of {len(set(ids))}); left out: {dropped}", flush=True
    )
    strict, ties = (
        [pair for row in rankings for pair in pairs(row) if len(set(pair.texts)) == 2 and pair.texts[0].strip()]
        for pairs in (pairs_of, ties_of)
    )
    golds = gold_answers(path) if name == "finegrained_qa" else {}
    shown = {row.prompt_id: row for row in rankings}
    ideals = [
        pair.model_copy(update={"ideal": True})
        for row in shown.values()
        for question, gold in golds.items()
        if question in row.prompt[-1].content
        for pair in pairs_of(above(row, gold))
    ]
    return Labels(strict, ties, ideals)


def ranking(row: ImportedRanking, number: int) -> Ranking:
    count = len(row.completions)
    return Ranking(
        prompt_id=prompt_id(row.prompt),
        prompt=row.prompt,
        split="train",
        label_id=str(number),
        source="import",
        annotator=row.annotator,
        created_utc="",
        completions=row.completions,
        completion_token_ids=[None] * count,
        finished=[True] * count,
        tiers=row.tiers,
        strength=row.strength,
    )


def gold_answers(path: Path) -> dict[str, str]:
    """The answer that somebody wrote to each question."""
    return {row["question"]: row["gold"] for row in json.loads(path.read_text(encoding="utf-8")) if row.get("gold")}


def above(shown: Ranking, ideal: str) -> Ranking:
    """An ideal answer above those that were shown."""
    count = len(shown.completions)
    return shown.model_copy(
        update={
            "label_id": f"{shown.label_id} ideal",
            "completions": [ideal, *shown.completions],
            "completion_token_ids": [None] * (count + 1),
            "finished": [True] * (count + 1),
            "tiers": [[0], [*range(1, count + 1)]],
        }
    )


# ---- Hidden states ----------------------------------------------------------------------------------------------

Encoded = tuple[Preference, EncodedPair]
Vectors = dict[tuple[int, ...], np.ndarray]
"""The features (H,) of each answer behind its prompt."""


def encode(labels: Labels) -> tuple[Labels, dict[int, EncodedPair], loading.Loaded]:
    """The labels that fit, their tokens by the identity of the pair, and the model."""
    model, _ = loading.load_scorer(ModelConfig(), None)
    model = loading.with_pad_token(model)
    fitting, tokens = [], dict[int, EncodedPair]()
    for pairs in (labels.strict, labels.ties, labels.ideals):
        kept, rows = encode_pairs(pairs, model.tokenizer, MOST_TOKENS, dropped := Dropped())
        tokens |= {id(pair): row for pair, row in zip(kept, rows, strict=True)}
        fitting.append(kept)
        if dropped.counts:
            print(f"left out: {dropped}")
    strict, ties, ideals = fitting
    return Labels(strict, ties, ideals), tokens, model


def vectors_of(labels: Labels, tokens: dict[int, EncodedPair], model: loading.Loaded, cache: Path | None) -> Vectors:
    rows = [tokens[id(pair)] for pair in labels.all]
    keys = [tuple(row.prompt_ids + ids) for row in rows for ids in (row.chosen_ids, row.rejected_ids)]
    if cache and cache.is_file():
        features = np.load(cache)["features"]
    else:
        features = read_features(model, rows, [PLACE.layers])[PLACE].reshape(len(keys), -1)
        if cache:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(cache, features=features)
    assert len(features) == len(keys), f"{cache}: of other labels; remove it"
    return dict(zip(keys, features.astype(np.float64), strict=True))


# ---- The head ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Signals:
    """What is read of the labels."""

    ties: Any = "leave_out"
    pairs: PairRule = "all"
    smoothing: float | Literal["measured"] = 0.0
    ideals: bool = False
    weighs_annotators: bool = False


VARIANTS = {
    "strict pairs alone": Signals(),
    "extremes of each ranking": Signals(pairs="extremes"),
    "with ties, Rao and Kupper": Signals(ties="rao_kupper"),
    "with ties as halves": Signals(ties="half"),
    "smoothing 0.1": Signals(smoothing=0.1),
    "smoothing as measured": Signals(smoothing="measured"),
    "annotators by reliability": Signals(weighs_annotators=True),
    "with ideal answers": Signals(ideals=True),
    "ties and ideal answers": Signals(ties="rao_kupper", ideals=True),
}


@dataclass(frozen=True)
class Comparisons:
    """M comparisons as tensors: differences of features (M, H), and weights, margins and ties (M,)."""

    smoothing: float
    differences: Tensor
    weights: Tensor
    margins: Tensor
    ties: Tensor


def comparisons(
    signals: Signals, labels: Labels, tokens: dict[int, EncodedPair], vectors: Vectors, prompts: set[str]
) -> Comparisons:
    """What the head learns from of the labels of these prompts."""

    def of(pairs: Iterable[Preference]) -> list[Encoded]:
        return [(pair, tokens[id(pair)]) for pair in pairs if pair.prompt_id in prompts]

    config = RewardConfig(run_dir=Path(), model=ModelConfig(), pairs=signals.pairs, ties=signals.ties)
    strict = of(choose_pairs([*labels.strict, *(labels.ideals if signals.ideals else [])], signals.pairs))
    votes = [own for key, own in votes_by_pair(labels.strict).items() if key[1] in prompts]
    right = right_probabilities(votes, {}) if signals.weighs_annotators else {}
    weight_of = {name: label_weight(q) for name, q in right.items()}
    rows = label_rows(config, strict, of(choose_ties(labels.ties, signals.pairs)), weight_of)
    contrasts: list[Contrast] = []
    differences = []
    for row in rows:
        table = np.stack([vectors[tuple(answer)] for answer in row.answers])
        for one in row.comparisons:
            contrasts.append(one)
            differences.append(table[list(one.better)].mean(axis=0) - table[list(one.worse)].mean(axis=0))
    weights = torch.tensor([one.weight for one in contrasts], dtype=torch.float64)
    smoothing = measured_smoothing(votes) if signals.smoothing == "measured" else signals.smoothing
    return Comparisons(
        smoothing,
        torch.tensor(np.stack(differences)),
        weights / weights.sum(),
        torch.tensor([one.margin for one in contrasts], dtype=torch.float64),
        torch.tensor([one.is_tie for one in contrasts]),
    )


def measured_smoothing(votes: Sequence[Votes]) -> float:
    """The share of wrong labels by which annotators would disagree as often as they do."""
    shares = [agreement_of(of_pair) for of_pair in votes if len(of_pair) > 1]
    return 1 - best_accuracy(sum(shares) / len(shares))


def fitted(data: Comparisons, ridge: float, signals: Signals) -> np.ndarray:
    """The direction (H,) that minimises the reward model's loss and ridge / 2 times its squared length, over features
    of unit variance; the threshold of ties is learnt beside it."""
    scale = data.differences.pow(2).mean(dim=0).sqrt().clamp(min=1e-9)
    x = data.differences / scale
    theta = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    share = float(data.weights[data.ties].sum())
    learns = signals.ties == "rao_kupper" and share > 0
    log_h = torch.tensor(threshold_of(min(share, 0.95)) if learns else 1.0, dtype=torch.float64).log().requires_grad_()
    optimiser = torch.optim.LBFGS([theta, log_h], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        h = log_h.exp() if learns else None
        loss = preference_loss(x @ theta, data.margins, data.ties, data.weights, h, data.smoothing)
        total: Tensor = loss + ridge / 2 * theta.square().sum()
        total.backward()
        return total

    optimiser.step(closure)
    return (theta.detach() / scale).numpy()


# ---- The figures ------------------------------------------------------------------------------------------------


def margins_of(pairs: Sequence[Preference], tokens: dict[int, EncodedPair], vectors: Vectors) -> np.ndarray:
    """(N, H) differences of the features of both answers."""
    rows = [tokens[id(pair)] for pair in pairs]
    return np.stack(
        [vectors[tuple(r.prompt_ids + r.chosen_ids)] - vectors[tuple(r.prompt_ids + r.rejected_ids)] for r in rows]
    )


def over_folds(
    pairs: Sequence[Preference], seed: int, judge: Callable[[set[str], list[Preference]], Sequence[float]]
) -> list[float]:
    """What is right of each pair, judged by what was learnt from the prompts of the other folds."""
    folds = folds_of_prompts([pair.prompt_id for pair in pairs], seed)
    right = np.zeros(len(pairs))
    for fold in sorted(set(folds.tolist())):
        held = [pair for pair, number in zip(pairs, folds, strict=True) if number == fold]
        others = {pair.prompt_id for pair in pairs} - {pair.prompt_id for pair in held}
        right[folds == fold] = judge(others, held)
    return right.tolist()


class Heads:
    """Judges for `over_folds`: heads with the ridge that is best, for strict pairs alone, on folds of the prompts that
    they learn from."""

    def __init__(self, labels: Labels, tokens: dict[int, EncodedPair], vectors: Vectors):
        self.labels, self.tokens, self.vectors = labels, tokens, vectors
        self.ridge_of: dict[frozenset[str], float] = {}

    def right(self, signals: Signals, ridge: float, prompts: set[str], held: Sequence[Preference]) -> list[float]:
        data = comparisons(signals, self.labels, self.tokens, self.vectors, prompts)
        margins = margins_of(held, self.tokens, self.vectors) @ fitted(data, ridge, signals)
        return [half_for_ties(margin) for margin in margins.tolist()]

    def best_ridge(self, prompts: set[str]) -> float:
        if frozenset(prompts) not in self.ridge_of:
            own = [pair for pair in self.labels.strict if pair.prompt_id in prompts]
            judges = {ridge: partial(self.right, Signals(), ridge) for ridge in RIDGES}
            accuracies = {ridge: over_prompts(own, over_folds(own, 1, judge)).value for ridge, judge in judges.items()}
            self.ridge_of[frozenset(prompts)] = max(RIDGES, key=accuracies.__getitem__)
        return self.ridge_of[frozenset(prompts)]

    def judge(self, signals: Signals, prompts: set[str], held: list[Preference]) -> list[float]:
        return self.right(signals, self.best_ridge(prompts), prompts, held)


def rules(labels: Labels) -> dict[str, list[float]]:
    names = list(learn_baselines(labels.strict[:1]))

    def judge(name: str) -> Callable[[set[str], list[Preference]], list[float]]:
        def right(prompts: set[str], held: list[Preference]) -> list[float]:
            return learn_baselines([pair for pair in labels.strict if pair.prompt_id in prompts])[name].rule(held)

        return right

    return {name: over_folds(labels.strict, 0, judge(name)) for name in names}


def report(name: str, labels: Labels, tokens: dict[int, EncodedPair], vectors: Vectors) -> None:
    pairs = labels.strict
    print(f"\n{name}: {len(pairs)} strict pairs, {len(labels.ties)} ties, {len(labels.ideals)} pairs of ideal answers")
    if limit := ceiling(pairs):
        agree, best = limit.agreement, limit.accuracy
        print(f"  two annotators agree in {agree.value:.1%}; a perfect model would reach {best.value:.1%}")
    by_rule = rules(labels)
    for rule, right in by_rule.items():
        print(f"  {rule:<36} {percent_of(over_prompts(pairs, right))}", flush=True)
    best_rule = max(by_rule, key=lambda rule: over_prompts(pairs, by_rule[rule]).value)
    plain: list[float] = []
    heads = Heads(labels, tokens, vectors)
    for variant, signals in variants(labels).items():
        right = over_folds(pairs, 0, partial(heads.judge, signals))
        plain = plain or right
        gain = points(difference_over_prompts(pairs, right, plain)) if right is not plain else ""
        ahead = points(difference_over_prompts(pairs, right, by_rule[best_rule]))
        print(f"  {variant:<36} {percent_of(over_prompts(pairs, right))}  on the best rule {ahead}  {gain}", flush=True)


def percent_of(share: Interval) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def variants(labels: Labels) -> dict[str, Signals]:
    """Those that differ on these labels."""
    has_rankings = any(pair.num_tiers > 2 for pair in labels.strict)
    is_shared = any(len(votes) > 1 for votes in votes_by_pair(labels.strict).values())
    return {
        name: signals
        for name, signals in VARIANTS.items()
        if (labels.ties or signals.ties == "leave_out")
        and (labels.ideals or not signals.ideals)
        and (has_rankings or signals.pairs == "all")
        and (is_shared or not (signals.weighs_annotators or signals.smoothing == "measured"))
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with pandalm, finegrained_qa and oasst_en_100")
    parser.add_argument("--sets", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--prompts", type=int, default=60, help="most prompts of each set")
    parser.add_argument("--features", type=Path, help="folder to keep hidden states in")
    options = parser.parse_args()
    for name in options.sets:
        labels = read_labels(name, options.data / FILES[name], options.prompts)
        labels, tokens, model = encode(labels)
        cache = options.features and options.features / f"{name}-{options.prompts}.npz"
        report(name, labels, tokens, vectors_of(labels, tokens, model, cache))


if __name__ == "__main__":
    main()
