"""What people said, as the reward model reads it: the answers of a label in tokens, and comparisons among them.

The unit is a label. All pairs of a ranking stand in one row, so that each answer is read once, and weigh 1 together
(Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5 and eq. 1).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from reward.config import RewardConfig
from trueup.data.records import Preference
from trueup.training.pairs import EncodedPair

MOST_OTHERS = 4
"""Most answers whose mean stands above an answer that was found bad."""


@dataclass(frozen=True)
class Contrast:
    """One side of answers against another, by their places in the row. `better` and `worse` are names alone in a
    tie."""

    better: tuple[int, ...]
    worse: tuple[int, ...]
    weight: float = 1.0
    margin: float = 0.0
    is_tie: bool = False
    is_below_others: bool = False
    """`worse` was found bad, and `better` are the others of its prompt."""
    is_ideal: bool = False
    """An annotator wrote `better`."""


@dataclass
class LabelRow:
    """A label: its answers, each behind the prompt, and the comparisons among them, which weigh as it together."""

    answers: list[list[int]] = field(default_factory=list)
    comparisons: list[Contrast] = field(default_factory=list)
    prompt_length: int = 0
    """Tokens of the prompt, with which all answers begin."""

    def place(self, answer: list[int]) -> int:
        """The answer's place in the row. It is added unless it is there."""
        if answer not in self.answers:
            self.answers.append(answer)
        return self.answers.index(answer)

    @property
    def longest(self) -> int:
        """Tokens of the longest answer with its prompt."""
        return max(map(len, self.answers))

    @property
    def columns(self) -> dict[str, Any]:
        """The row of a dataset. Lists of one depth alone are quick to read."""
        return {
            "token_ids": [id for answer in self.answers for id in answer],
            "lengths": [len(answer) for answer in self.answers],
            "prompt_length": self.prompt_length,
            "contrasts": [value for one in self.comparisons for value in _contrast(one, len(self.answers))],
            "weights": [one.weight for one in self.comparisons],
            "margins": [one.margin for one in self.comparisons],
            "ties": [one.is_tie for one in self.comparisons],
        }


def _contrast(comparison: Contrast, answers: int) -> list[float]:
    """Coefficients of the answers' scores in the comparison's gap."""
    row = [0.0] * answers
    for side, sign in ((comparison.better, 1.0), (comparison.worse, -1.0)):
        for place in side:
            row[place] += sign / len(side)
    return row


Encoded = tuple[Preference, EncodedPair]


def label_rows(
    config: RewardConfig,
    strict: Iterable[Encoded],
    ties: Iterable[Encoded],
    weight_of: Mapping[str, float] | None = None,
) -> list[LabelRow]:
    """The rows of a training set, in the order of their labels.

    strict, ties  pairs with their tokens
    weight_of     what all comparisons of a label weigh together, by annotator; 1 for who is not in it

    Two answers that were found bad are compared with the others of their prompt: each is below the mean of those that
    somebody preferred. Where nobody preferred another answer to this prompt, they are a tie.
    """
    strict, ties = list(strict), list(ties) if config.ties != "leave_out" else []
    bad = {_answer(row, side) for pair, row in ties if pair.both_bad for side in ("chosen", "rejected")}
    preferred: dict[str, list[list[int]]] = {}
    for pair, row in strict:
        answer = row.prompt_ids + row.chosen_ids
        others = preferred.setdefault(pair.prompt_id, [])
        if tuple(answer) not in bad and answer not in others and len(others) < MOST_OTHERS:
            others.append(answer)

    labels: dict[str, list[tuple[Encoded, bool]]] = {}
    for is_tie, pairs in ((False, strict), (True, ties)):
        for encoded in pairs:
            labels.setdefault(encoded[0].label_id, []).append((encoded, is_tie))
    weight_of = weight_of or {}
    return [
        _label_row(config, pairs, preferred, weight_of.get(pairs[0][0][0].annotator, 1.0)) for pairs in labels.values()
    ]


def _label_row(
    config: RewardConfig,
    pairs: Sequence[tuple[Encoded, bool]],
    preferred: dict[str, list[list[int]]],
    weight: float,
) -> LabelRow:
    row = LabelRow(prompt_length=len(pairs[0][0][1].prompt_ids))
    for (pair, encoded), is_tie in pairs:
        sides = [row.place(encoded.prompt_ids + ids) for ids in (encoded.chosen_ids, encoded.rejected_ids)]
        margin = config.grade_margins[pair.strength - 1] if pair.strength and not is_tie else 0.0
        row.comparisons.append(Contrast((sides[0],), (sides[1],), 1.0, margin, is_tie, is_ideal=pair.ideal))
        if pair.both_bad and (others := preferred.get(pair.prompt_id)):
            above = tuple(row.place(answer) for answer in others)
            row.comparisons += [Contrast(above, (place,), 1.0, is_below_others=True) for place in sides]
    row.comparisons = [replace(one, weight=weight / len(row.comparisons)) for one in row.comparisons]
    return row


def counts(rows: Sequence[LabelRow]) -> dict[str, int]:
    """Numbers of labels and of comparisons by their kinds, for `reward.report.Learnt`."""
    comparisons = [one for row in rows for one in row.comparisons]
    return {
        "labels": len(rows),
        "comparisons": len(comparisons),
        "ties": sum(one.is_tie for one in comparisons),
        "graded": sum(one.margin > 0 for one in comparisons),
        "below_others": sum(one.is_below_others for one in comparisons),
        "ideal": sum(one.is_ideal for one in comparisons),
    }


def _answer(row: EncodedPair, side: str) -> tuple[int, ...]:
    return (*row.prompt_ids, *getattr(row, f"{side}_ids"))


@dataclass(frozen=True)
class Collator:
    """A batch of rows: all answers, padded on the right, and the comparisons among them."""

    pad_token_id: int
    pad_to_multiple_of: int | None = None

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        """
        input_ids, attention_mask  (N, T) of N answers
        answer_mask                (N, T) 1 on an answer's own tokens, behind its prompt
        contrasts                  (M, N) of M comparisons: `reward.loss` says what it is
        weights, margins, ties     (M,)
        rows                       () number of labels
        """
        answers: list[list[int]] = []
        starts: list[int] = []
        for row in rows:
            starts += [min(row["prompt_length"], length - 1) for length in row["lengths"]]
            ends = torch.tensor(row["lengths"]).cumsum(0).tolist()
            answers += [row["token_ids"][end - length : end] for end, length in zip(ends, row["lengths"], strict=True)]
        longest, step = max(map(len, answers)), self.pad_to_multiple_of or 1
        width = -(-longest // step) * step
        blocks = [torch.tensor(row["contrasts"]).view(-1, len(row["lengths"])) for row in rows]
        return {
            "input_ids": torch.tensor([answer + [self.pad_token_id] * (width - len(answer)) for answer in answers]),
            "attention_mask": torch.tensor([[1] * len(answer) + [0] * (width - len(answer)) for answer in answers]),
            "answer_mask": torch.tensor(
                [
                    [0] * start + [1] * (len(answer) - start) + [0] * (width - len(answer))
                    for start, answer in zip(starts, answers, strict=True)
                ]
            ),
            "contrasts": torch.block_diag(*blocks),
            "weights": torch.tensor([value for row in rows for value in row["weights"]]),
            "margins": torch.tensor([value for row in rows for value in row["margins"]]),
            "ties": torch.tensor([value for row in rows for value in row["ties"]], dtype=torch.bool),
            "rows": torch.tensor(len(rows)),
        }
