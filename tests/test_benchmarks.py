"""The campaigns that benchmarks write are loaded: a key that was renamed would stop a benchmark that no test runs."""

from __future__ import annotations

import random
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import people
import reward_model
import rounds
from few_labels import prepare
from ppo_toy import toy_campaign
from rlhf.align.config.online import GRPOConfig, PPOConfig, RLOOConfig
from rlhf.compare.config import CompareConfig
from trueup.data.formats import ImportedRanking
from trueup.data.pairs import pairs_of, ties_of
from trueup.data.records import Message, Ranking, read_rows, write_rows
from trueup.training.pairs import EncodedPair
from ui.labels.config import LabelConfig


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_the_toy_has_a_campaign_for_every_algorithm(tmp_path: Path, algorithm: str) -> None:
    align = toy_campaign(tmp_path, seed=0, rollouts=3, algorithm=algorithm).stages["align"]
    assert isinstance(align, PPOConfig | GRPOConfig | RLOOConfig)
    assert (align.algorithm, align.max_steps) == (algorithm, 3 * align.updates_per_rollout)


def test_a_hundred_labels_have_a_campaign(tmp_path: Path) -> None:
    for stage in ("sft", "candidates"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    campaign = prepare(Namespace(run=tmp_path / "run", overrides=[]), tmp_path / "kept", seed=0, labels=[])
    assert isinstance(campaign.stages["compare"], CompareConfig)
    assert campaign.stages["compare"].judges == ["rubric"]


def test_rounds_and_one_pass_have_campaigns_with_as_many_labels(tmp_path: Path) -> None:
    options = Namespace(config=rounds.REPOSITORY / "configs" / "demo.yaml", overrides=["sample.num_candidates=3"])
    for stage in ("sft", "candidates"):
        (tmp_path / "once" / "run" / stage).mkdir(parents=True)
    once = rounds.campaign(options, tmp_path / "once", seed=1, rounds=1, labels=300)
    often = rounds.campaign(options, tmp_path / "often", 1, rounds=3, labels=100, beside=once.run_dir)
    labels = [stage.target_labels for stage in often.stages.values() if isinstance(stage, LabelConfig)]
    assert labels == [100] * 3 and isinstance(label := once.stages["label"], LabelConfig) and label.target_labels == 300
    last = often.stages["round-3/compare"]
    assert isinstance(last, CompareConfig) and last.other_runs.keys() == {"round-2", "one-pass"}


def test_a_share_of_the_labels_has_a_campaign_and_a_larger_one_holds_it(tmp_path: Path) -> None:
    for stage in ("sft", "candidates", "labels"):
        (tmp_path / "run" / stage).mkdir(parents=True)
    labels = [
        Ranking(
            prompt=[Message(role="user", content=f"Question {i}?")],
            completions=["Yes.", "No."],
            completion_token_ids=[None, None],
            finished=[True, True],
            tiers=[[0, 1]] if i % 2 else [[0], [1]],
            both_bad=i % 4 == 1,
            strength=None if i % 2 else 3,
            prompt_id=str(i),
            split="train",
            label_id=str(i),
            source="import",
            annotator="ann",
            created_utc="2026-01-01T00:00:00+00:00",
        )
        for i in range(20)
    ]
    write_rows(tmp_path / "run" / "labels" / "rankings.jsonl", labels)
    options = Namespace(run=tmp_path / "run", overrides=[], seed=0)
    campaign = reward_model.prepare(options, tmp_path / "made", share=0.5)
    assert campaign.stages["reward"].run_dir == tmp_path / "made" / "run"
    half, quarter = (reward_model.share_of(labels, share, 0) for share in (0.5, 0.25))
    assert len(half) == 10 and len(quarter) == 5 and all(label in half for label in quarter)
    written = read_rows(tmp_path / "made" / "labels.jsonl", Ranking)
    assert {label.strength for label in written} == {None, 3} and any(label.both_bad for label in written)
    assert all(label in labels for label in written), "grades and ties are those that were given"


def test_every_signal_of_peoples_labels_has_a_head_that_learns_what_was_planted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rankings of three by two annotators; the first unit of the hidden states is what they go by."""
    chance, states = random.Random(0), np.random.default_rng(0).normal(size=(40, 4, 6))
    states[:, 3, 0] = 3  # the ideal answers
    labels = people.Labels([], [], [])
    for prompt in range(40):
        order = sorted(range(3), key=lambda i, of=states[prompt]: -of[i, 0])  # type: ignore[misc]
        for annotator in ("ann", "bob"):
            row = people.ranking(
                ImportedRanking(
                    where="",
                    prompt=[Message(role="user", content=f"Question {prompt}?")],
                    completions=[f"{prompt} {i}" for i in range(3)],
                    tiers=[[i] for i in order] if chance.random() < 0.8 else [order[:2], order[2:]],
                    annotator=annotator,
                ),
                len(labels.strict),
            )
            labels.strict.extend(pairs_of(row))
            labels.ties.extend(ties_of(row))
            labels.ideals.extend(pairs_of(people.above(row, f"{prompt} 3")))
    tokens, vectors = dict[int, EncodedPair](), dict[tuple[int, ...], Any]()
    for pair in labels.all:
        (prompt, chosen), (_, rejected) = (map(int, text.split()) for text in pair.texts)
        tokens[id(pair)] = EncodedPair([prompt], [chosen], [rejected])
        vectors |= {(prompt, answer): states[prompt, answer] for answer in (chosen, rejected)}
    people.report("planted", labels, tokens, vectors)
    printed = capsys.readouterr().out
    shares = {name: re.search(rf"{name} +([0-9.]+)%", printed) for name in people.VARIANTS}
    assert all(share and float(share[1]) > 90 for share in shares.values()), printed
