"""Planted truths on criteria: two that pull apart, and a reward model that follows the one that has the weight."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import reward.train
from reward.report import PairScore
from rlhf.align.config.labelled import DPOConfig, KTOConfig
from trueup import runs
from trueup.data.pairs import pairs_of
from trueup.data.records import IDEALS, Message, Preference, Ranking, prompt_id, read_rows, write_rows
from trueup.errors import ConfigError
from trueup.models import loading
from trueup.training.pairs import read_pairs
from trueup.verify import verify

COLOURS = "red blue green black white brown".split()


def judged(number: int, chance: random.Random, orders: dict[str, list[str]]) -> Preference:
    """A pair of colours whose better one by each criterion is the later one in its order. The overall choice is
    chance."""
    pair = chance.sample(COLOURS, 2)
    prompt = [Message(role="user", content=f"{number}: which?")]
    best = {name: int(order.index(pair[1]) > order.index(pair[0])) for name, order in orders.items()}
    keys: dict[str, Any] = {"split": "train", "source": "human", "annotator": "me", "created_utc": ""}
    texts = [f"It is {colour}." for colour in pair]
    ranking = Ranking(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        label_id=str(number),
        completions=texts,
        completion_token_ids=[None, None],
        finished=[True, True],
        tiers=[[0], [1]],
        criteria=best,
        **keys,
    )
    return pairs_of(ranking)[0]


@pytest.fixture
def labelled(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """A campaign with these pairs as its labels; its SFT policy is the base model."""

    def make(pairs: list[Preference], ideals: Sequence[Preference] = (), **sections: Any) -> Any:
        made = campaign(tmp_path, split={"heldout_fraction": 0.3}, **sections)
        if runs.find_stage(made.run_dir, "label") is None:
            stage = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), stage.dir / "model")
            stage.finish()
            stage = runs.begin(made.stages["sample"])
            stage.finish()
            stage = runs.begin(made.stages["label"])
            write_rows(stage.dir / "preferences.jsonl", pairs)
            write_rows(stage.dir / "ties.jsonl", [])
            write_rows(stage.dir / IDEALS, ideals)
            stage.finish()
        return made

    return make


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_criterion_that_has_the_weight_is_the_one_that_is_learnt(labelled: Callable[..., Any], seed: int) -> None:
    """The two criteria never agree, and the overall choice is chance."""
    chance = random.Random(seed)
    bright = chance.sample(COLOURS, len(COLOURS))
    pairs = [judged(number, chance, {"bright": bright, "soft": bright[::-1]}) for number in range(300)]
    keys = {"learning_rate": 3e-3, "train_batch_size": 8, "max_steps": -1, "num_train_epochs": 3, "max_length": 64}
    for mine, other in (("bright", "soft"), ("soft", "bright")):
        made = labelled(pairs, reward={**keys, "criteria_weights": {mine: 1.0, other: 0.0}})
        directory = reward.train.run(made.stages["reward"])
        scores = {row.label_id: row.chosen - row.rejected for row in read_rows(directory / "scores.jsonl", PairScore)}
        heldout = read_pairs(runs.open_stage(made.run_dir, "label"), made.stages["reward"]).heldout
        right = [(scores[pair.label_id] > 0) == (pair.better_by[mine] == "chosen") for pair in heldout]
        assert len(right) > 50 and sum(right) > 0.8 * len(right), (mine, sum(right) / len(right))
        assert json.loads((directory / "report.json").read_text())["accuracy"]["value"] > 0.8, (
            "held out, the same order"
        )


def test_every_stage_that_learns_preferences_reads_the_same_order(labelled: Callable[..., Any]) -> None:
    chance = random.Random(0)
    orders = {name: chance.sample(COLOURS, len(COLOURS)) for name in ("bright", "soft")}
    pairs = [judged(number, chance, orders) for number in range(60)]
    weights = {"criteria_weights": {"soft": 1.0, "bright": 0.4}}
    expected = {pair.label_id: pair.better_by["soft"] for pair in pairs}
    for algorithm, config in (("dpo", DPOConfig), ("kto", KTOConfig)):
        made = labelled(pairs, reward=weights, align={"algorithm": algorithm, **weights})
        label = runs.open_stage(made.run_dir, "label")
        assert isinstance(made.stages["align"], config)
        by_stage = [read_pairs(label, made.stages[stage]) for stage in ("reward", "align")]
        assert by_stage[0].train == by_stage[1].train and by_stage[0].heldout == by_stage[1].heldout
        for pair in [*by_stage[0].train, *by_stage[0].heldout]:
            before = next(one for one in pairs if one.label_id == pair.label_id)
            assert (pair.texts == before.texts) == (expected[pair.label_id] == "chosen")
            assert pair.strength in (2, 3), "0.6 of 1.4, or all of it"


def test_weights_that_say_nothing_are_refused(campaign: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"criteria_weights: .*no criterion has a weight"):
        campaign(tmp_path, reward={"criteria_weights": {"overall": 1.0}})


def by_judge(number: int, chance: random.Random, order: list[str]) -> Preference:
    """A pair that a language model judged in this order, overall and by no criterion."""
    pair = judged(number, chance, {"bright": order})
    best = pair.better_by["bright"] == "chosen"
    sides = (pair.chosen, pair.rejected) if best else (pair.rejected, pair.chosen)
    provenance = {"source": "judge", "annotator": "judge-model", "better_by": {}}
    return pair.model_copy(update={"chosen": sides[0], "rejected": sides[1], **provenance})


def ideal(pair: Preference, order: list[str]) -> list[Preference]:
    """The ideal answer to a prompt, which names the best colour, above both answers that were shown."""
    written = {"chosen": [Message(role="assistant", content=f"It is {order[-1]}.")], "ideal": True, "better_by": {}}
    return [
        pair.model_copy(update={**written, "rejected": shown, "label_id": f"{pair.label_id}-{side}"})
        for side, shown in enumerate((pair.chosen, pair.rejected))
    ]


def test_a_probe_is_the_start_where_people_a_judge_and_ideal_answers_say_what_a_criterion_orders(
    labelled: Callable[..., Any],
) -> None:
    """People's overall choice is chance; what is learnt is their criterion, the judge's order and the ideal answers."""
    chance = random.Random(0)
    order = chance.sample(COLOURS, len(COLOURS))
    people = [judged(number, chance, {"bright": order, "soft": order[::-1]}) for number in range(100)]
    judges = [by_judge(number, chance, order) for number in range(100, 200)]
    ideals = [one for pair in people[::4] for one in ideal(pair, order)]
    keys = {"learning_rate": 3e-3, "train_batch_size": 8, "max_steps": -1, "num_train_epochs": 1, "max_length": 64}
    section = {**keys, "start": "probe", "criteria_weights": {"bright": 1.0}}
    made = labelled(people + judges, ideals, reward=section)
    directory = reward.train.run(made.stages["reward"])
    report = json.loads((directory / "report.json").read_text())
    pairs = read_pairs(runs.open_stage(made.run_dir, "label"), made.stages["reward"])
    assert 0 < report["learnt"]["ideal"] <= len(pairs.ideals) < len(ideals), "those of held-out prompts train nothing"
    kept = report["start"]
    assert kept["kept_prompts"] > 0 and kept["loss_at_start"] is not None
    scores = {row.label_id: row.chosen - row.rejected for row in read_rows(directory / "scores.jsonl", PairScore)}
    assert scores.keys() == {pair.label_id for pair in pairs.heldout}
    for source in ("human", "judge"):
        right = [scores[pair.label_id] > 0 for pair in pairs.heldout if pair.source == source]
        assert len(right) > 15 and sum(right) > 0.8 * len(right), (source, sum(right) / len(right))
    assert verify(made.run_dir).problems == []
