"""Does what SFT teaches carry over to kinds of tasks that it left out (`sft.leave_out`)?

The base model and the SFT policy read the same demonstrations that nothing trained on: those that are held out, and of
the kinds that were left out all. Three figures of each, before and after:

loss     nats per token that carries loss
exact    whether the greedy answer is the demonstration's, where that has few words
overlap  F1 of the words of the greedy answer and of the demonstration's, as SQuAD has it (Rajpurkar et al. 2016,
         https://arxiv.org/abs/1606.05250, section 6.1), where the demonstration's can be given whole

The change is the mean of the paired differences, with an interval over prompts; it speaks of these kinds of tasks, and
not of others. Tasks by kind, some of them unseen: Wei et al. 2022, https://arxiv.org/abs/2109.01652, section 2.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sft.config import SFTConfig
from sft.data import Data, answerable, last_trained, without_category
from sft.report import FiguresByKind, KindFigures, MeanChange
from trueup.console import say
from trueup.data.words import count_words, normal, words
from trueup.inspecting.kinds import is_named
from trueup.models.chat import IGNORED, Encoded, answer_text
from trueup.models.loading import Loaded
from trueup.models.sampling import Decoding, sample
from trueup.models.sources.settings import context_length
from trueup.models.templates.ends import ends_turn
from trueup.runs import StageRun
from trueup.statistics.intervals import Interval, bootstrap_mean
from trueup.statistics.win_rates import win_rate

_SCORED = 32
"""Most demonstrations of a kind that are read."""
_FEW_WORDS = 12
"""Words of an answer that another one may be."""
_AT_ONCE = 32
"""Prompts that are answered together."""
_AROUND = " .,;:!?\"'`*()[]"
"""Marks around an answer that make it no other one."""
SEEN, UNSEEN = "kinds that were trained on", "kinds that were left out"


# ---- Read -------------------------------------------------------------------------------------------------------


def scored(data: Data, config: SFTConfig) -> dict[str, np.ndarray]:
    """Demonstrations of each kind to read before and after, by its name; none if no kind is left out."""
    if not config.leave_out:
        return {}
    codes, names = data.kinds
    parts = np.concatenate([data.heldout, data.left_out])
    drawn = random.Random(config.seed)
    by_kind = {name: parts[codes[parts] == code].tolist() for code, name in enumerate(names)}
    return {
        name: np.array(sorted(drawn.sample(of_kind, min(len(of_kind), _SCORED))), dtype=np.int64)
        for name, of_kind in sorted(by_kind.items())
        if of_kind
    }


@dataclass
class KindReading:
    """What a policy makes of a demonstration."""

    loss: float
    exact: float | None = None
    overlap: float | None = None


def read(policy: Loaded, data: Data, of_kinds: Mapping[str, np.ndarray], new_tokens: int) -> dict[int, KindReading]:
    """The figures of each demonstration, by its part.

    new_tokens  most tokens of an answer: demonstrations whose own is longer are not answered
    """
    if not of_kinds:
        return {}
    policy.model.eval()
    parts = np.concatenate(list(of_kinds.values()))
    figures = {int(part): KindReading(_loss(policy.model, _rows(data, part))) for part in parts}
    own = own_answers(policy, data, parts, new_tokens)
    prompts = [last_trained(data.tokens.demonstration(part))[0] for part in own]
    decoding = Decoding(new_tokens, temperature=0.0)
    for (part, answer), [completion] in zip(own.items(), sample(policy, prompts, decoding, 1, _AT_ONCE), strict=True):
        figures[part].overlap = overlap(completion.text, answer)
        if count_words(answer) <= _FEW_WORDS:
            figures[part].exact = float(completion.finished and plain(completion.text) == plain(answer))
    return figures


def own_answers(policy: Loaded, data: Data, parts: np.ndarray, new_tokens: int) -> dict[int, str]:
    """The last answers of the demonstrations, by their part, where they are whole and a policy could give them."""
    room = context_length(policy.model.config, policy.tokenizer)
    own: dict[int, str] = {}
    for part in answerable(data, parts, new_tokens, room).tolist():
        row = _rows(data, part)[-1]
        ids = row.input_ids[int(data.tokens.asked[data.tokens.first[part + 1] - 1]) :]
        if len(ids) <= new_tokens and ends_turn(policy.tokenizer, ids):
            own[part] = answer_text(policy.tokenizer, ids)
    return own


def _rows(data: Data, part: int) -> list[Encoded]:
    return list(data.tokens.training_rows(np.array([part])))


@torch.inference_mode()
def _loss(model: Any, rows: Sequence[Encoded]) -> float:
    """Of the training rows of one demonstration, in nats per token that carries loss."""
    total, count = 0.0, 0
    for row in rows:
        ids, labels = (torch.tensor([values], device=model.device) for values in (row.input_ids, row.labels))
        logits = model(input_ids=ids).logits[0, :-1].float()
        total += float(torch.nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=IGNORED, reduction="sum"))
        count += int((labels[0, 1:] != IGNORED).sum())
    return total / count


def plain(text: str) -> str:
    """An answer without its case and the marks around it."""
    return normal(text).casefold().strip(_AROUND)


def overlap(text: str, other: str) -> float:
    """F1 of the words of two texts: the harmonic mean of the shares of each that the other has. 1 if both have none."""
    one, two = Counter(words(text)), Counter(words(other))
    return 2 * (one & two).total() / (one.total() + two.total()) if one or two else 1.0


# ---- Compare ----------------------------------------------------------------------------------------------------


def compared(
    stage: StageRun,
    data: Data,
    of_kinds: Mapping[str, np.ndarray],
    before: Mapping[int, KindReading],
    after: Mapping[int, KindReading],
    config: SFTConfig,
) -> FiguresByKind | None:
    """The figures of each kind and of all that were trained on or left out; None if no kind is left out."""
    if not of_kinds:
        return None
    codes, names = data.kinds
    trained = {names[code] for code in np.unique(codes[data.train]).tolist()}
    of = {
        SEEN: [kind for kind in of_kinds if kind in trained],
        UNSEEN: [kind for kind in of_kinds if is_named(kind, config.leave_out)],
    }

    def figures(kinds: Sequence[str]) -> KindFigures | None:
        parts = [part for kind in kinds for part in of_kinds[kind].tolist()]
        pairs = [(int(data.tokens.openings[part]), before[part], after[part]) for part in parts]
        return figures_of(pairs, config.seed) if pairs else None

    report = FiguresByKind(
        left_out=list(config.leave_out),
        by_kind={kind: one for kind in of_kinds if (one := figures([kind]))},
        seen=figures(of[SEEN]),
        unseen=figures(of[UNSEEN]),
        neither=[kind for kind in of_kinds if kind not in of[SEEN] + of[UNSEEN]],
        told=int(without_category(data.tokens).sum()),
    )
    lines = [
        f"{what} ({', '.join(of[what])}): {in_words(one)}"
        for what, one in ((SEEN, report.seen), (UNSEEN, report.unseen))
        if one
    ]
    if report.neither:
        lines.append(f"kinds of which nothing is trained on, and which are not left out: {', '.join(report.neither)}")
    if unmeasured := sorted(trained - of_kinds.keys()):
        lines.append(f"kinds that are trained on, and of which nothing is held out: {', '.join(unmeasured)}")
    if report.told:
        lines.append(
            f"{report.told} of {len(data.tokens)} demonstrations name no category, and count as the kind that words of "
            "their first question tell"
        )
    for line in lines:
        say(f"{'kinds':<12} {line}")
        stage.find("info", "kinds", line)
    return report


def figures_of(pairs: Sequence[tuple[int, KindReading, KindReading]], seed: int) -> KindFigures:
    """pairs: (prompt, figures before, figures after) of each demonstration"""

    def change(name: str) -> MeanChange | None:
        by_prompt: dict[int, list[tuple[float, float]]] = {}
        for prompt, *both in pairs:
            one, other = (getattr(figures, name) for figures in both)
            if one is not None and other is not None:
                by_prompt.setdefault(prompt, []).append((one, other))
        if not by_prompt:
            return None
        differences = [[after - before for before, after in group] for group in by_prompt.values()]
        values = np.array([pair for group in by_prompt.values() for pair in group])
        interval = _of_shares(differences, seed) if name == "exact" else _of_means(differences, seed)
        means = dict(zip(("before", "after"), values.mean(0).tolist(), strict=True))
        return MeanChange(**interval.estimate().model_dump(), **means, demonstrations=len(values))

    loss = change("loss")
    assert loss is not None
    return KindFigures(loss=loss, exact=change("exact"), overlap=change("overlap"))


def _of_means(differences: Sequence[Sequence[float]], seed: int) -> Interval:
    return bootstrap_mean(differences, seed=seed, bounds=None)


def _of_shares(differences: Sequence[Sequence[float]], seed: int) -> Interval:
    """Of differences that are -1, 0 or 1, as a win rate is: many of them are equal, which is no certainty."""
    rate = win_rate([[(1 + one) / 2 for one in group] for group in differences], seed=seed).interval
    return Interval(2 * rate.value - 1, 2 * rate.low - 1, 2 * rate.high - 1, rate.n)


def in_words(one: KindFigures) -> str:
    parts = [f"loss {_change(one.loss)} nats a token on {one.loss.demonstrations} demonstrations"]
    if one.exact:
        parts.append(
            f"the demonstration's answer, word for word, in {_change(one.exact)} of {one.exact.demonstrations}"
        )
    if one.overlap:
        parts.append(f"words in common with it (F1) {_change(one.overlap)} of {one.overlap.demonstrations}")
    return "; ".join(parts)


def _change(one: MeanChange) -> str:
    interval = "" if one.ci_low is None or one.ci_high is None else f" [{one.ci_low:+.3f}, {one.ci_high:+.3f}]"
    return f"{one.before:.3f} before, {one.after:.3f} after, {one.value:+.3f}{interval}"
