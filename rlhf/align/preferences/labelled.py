"""Labelled pairs in tokens: those to train on, the ties among them, and those that are held out."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf.align.config.labelled import LabelledConfig
from trueup.console import say
from trueup.data.records import Dropped, Preference
from trueup.errors import DataError
from trueup.models import loading
from trueup.runs import StageRun
from trueup.training.pairs import EncodedPair, Pairs, encode_pairs


@dataclass(frozen=True)
class Labelled:
    """Pairs and their tokens, in one order."""

    train: list[Preference]
    """Strict pairs, those of ideal answers last."""
    rows: list[EncodedPair]
    ties: list[Preference]
    """Those that are trained on."""
    tied_rows: list[EncodedPair]
    heldout: list[Preference]
    heldout_rows: list[EncodedPair]


def encode_labelled(
    config: LabelledConfig, stage: StageRun, policy: loading.Loaded, pairs: Pairs, ties: list[Preference]
) -> Labelled:
    """The pairs that fit, and their tokens; a DataError if none is left to train on.

    ties  those of `pairs.ties` to train on; the others are counted
    """
    dropped, heldout_dropped = Dropped(), Dropped()
    tokenizer, limit, rule = policy.tokenizer, config.max_length, pairs.on_bad_rows
    train, rows = encode_pairs(pairs.train, tokenizer, limit, dropped, stage, rule)
    ideals, ideal_rows = encode_pairs(pairs.ideals, tokenizer, limit, ideals_dropped := Dropped(), stage, rule)
    ties, tied_rows = encode_pairs(ties, tokenizer, limit, tied_dropped := Dropped(), stage, rule)
    heldout, heldout_rows = encode_pairs(pairs.heldout, tokenizer, limit, heldout_dropped, on_bad_rows=rule)
    stage.keep_aside(heldout_dropped)
    if not rows:
        raise DataError(f"no pair is left to train on within align.max_length, {limit} tokens (left out: {dropped})")
    if dropped.counts or tied_dropped.counts or ideals_dropped.counts or heldout_dropped.counts:
        others = {"ties": tied_dropped, "ideal answers": ideals_dropped}
        of_others = "".join(f"; {name}: {count}" for name, count in others.items() if count.counts)
        stage.find(
            "warn",
            "dropped",
            f"pairs not trained on: {dropped}{of_others}; held out and not evaluated: {heldout_dropped}",
        )
    stage.trained_on(pair.prompt for pair in [*train, *ties, *ideals])
    say(f"{'pairs':<12} {len(rows)} to train on ({config.pairs}); dropped: {dropped}")
    if pairs.ties:
        say(f"{'ties':<12} {len(ties)} to train on, of {len(pairs.ties)}; dropped: {tied_dropped}")
    if pairs.ideals:
        say(f"{'ideals':<12} {len(ideals)} pairs of ideal answers to train on; dropped: {ideals_dropped}")
    say(f"{'policy':<12} from {config.start_title}, which is also the reference; {policy.placement.reason}")
    return Labelled([*train, *ideals], [*rows, *ideal_rows], ties, tied_rows, heldout, heldout_rows)
