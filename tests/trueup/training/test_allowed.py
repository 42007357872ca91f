"""`trainer_args`: every argument of every TRL config does something here, or is refused with a reason."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from trl.experimental.cpo import CPOConfig

from reward.config import RewardConfig
from rlhf.align.config import ALGORITHMS
from sft.config import SFTConfig
from trueup.errors import ConfigError
from trueup.training.allowed import ALLOWED, GOES_WITH, NOT_WITH, problems, wrong_values

SCHEMAS: dict[str, tuple[type, Any]] = {
    "sft": (trl.SFTConfig, SFTConfig),
    "reward": (trl.RewardConfig, RewardConfig),
    "dpo": (trl.DPOConfig, ALGORITHMS["dpo"]),
    "simpo": (CPOConfig, ALGORITHMS["simpo"]),
    "kto": (trl.KTOConfig, ALGORITHMS["kto"]),
    "best_of_n": (trl.SFTConfig, ALGORITHMS["best_of_n"]),
    "ppo": (trl.GRPOConfig, ALGORITHMS["ppo"]),
    "grpo": (trl.GRPOConfig, ALGORITHMS["grpo"]),
    "rloo": (trl.RLOOConfig, ALGORITHMS["rloo"]),
}


def arguments_of(kind: str) -> list[str]:
    return sorted(field.name for field in dataclasses.fields(SCHEMAS[kind][0]) if field.init)


def refusal(kind: str, name: str, value: Any = True) -> str | None:
    stage = kind if kind in ("sft", "reward") else "align"
    found = problems(kind, stage, SCHEMAS[kind][1].model_fields, {name: value}, tracked=True)
    return found[0] if found else None


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_argument_of_trl_is_let_through_or_refused_with_a_reason(kind: str) -> None:
    for name in arguments_of(kind):
        said = refusal(kind, name)
        if name in ALLOWED[kind]:
            assert said is None or (name in GOES_WITH and "would do nothing without" in said), name
        else:
            assert said is not None and "no argument that Trueup knows" not in said, (kind, name)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_nothing_is_let_through_that_the_trainer_does_not_have(kind: str) -> None:
    assert ALLOWED[kind] <= set(arguments_of(kind))


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (
            "sft",
            {"packing_strategy": "bfd"},
            "sft.trainer_args.packing_strategy: is refused: Trueup tokenises and labels the rows itself, so that what "
            "is trained is the text of the row",
        ),
        ("sft", {"packing": True}, "sft.trainer_args.packing: is set by Trueup; use sft.packing"),
        (
            "sft",
            {"gradient_accumulation_steps": 2},
            "sft.trainer_args.gradient_accumulation_steps: is set by Trueup; use ",
        ),
        (
            "sft",
            {"weight_dcay": 0.1},
            "sft.trainer_args.weight_dcay: no argument that Trueup knows; did you mean weight_d",
        ),
        ("sft", {"learning_rate": 1.0}, "sft.trainer_args.learning_rate: is set by Trueup; use sft.learning_rate"),
        ("sft", {"run_name": "x"}, "sft.trainer_args.run_name: would do nothing: sft.report_to names no tracker"),
        ("dpo", {"ld_alpha": 0.5}, "align.trainer_args.ld_alpha: is refused: the reference is the SFT policy"),
        ("dpo", {"loss_type": "x"}, "align.trainer_args.loss_type: is set by Trueup; use align.loss_type"),
        (
            "dpo",
            {"f_alpha_divergence_coef": 0.4},
            "align.trainer_args.f_alpha_divergence_coef: would do nothing without f_divergence_type: alpha_divergence",
        ),
        (
            "grpo",
            {"sapo_temperature_pos": 2.0},
            "align.trainer_args.sapo_temperature_pos: would do nothing without loss_",
        ),
        (
            "ppo",
            {"optim": "sgd"},
            "align.trainer_args.optim: would do nothing: it belongs to GRPO's loss or TRL's own optimiser",
        ),
        ("ppo", {"beta": 0.1}, "align.trainer_args.beta: is set by Trueup; use align.kl_coef"),
        (
            "grpo",
            {"loss_type": "sapo", "delta": 2.0},
            "align.trainer_args.delta: would do nothing with loss_type: sapo",
        ),
        (
            "sft",
            {"loss_type": "dft", "label_smoothing_factor": 0.1},
            "sft.trainer_args.label_smoothing_factor: would do nothing with loss_type: dft",
        ),
    ],
)
def test_a_file_with_such_an_argument_is_not_read(
    kind: str, given: dict[str, Any], said: str, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    section: dict[str, Any] = {"trainer_args": given}
    stage = kind if kind in ("sft", "reward") else "align"
    if stage == "align":
        section["algorithm"] = kind
    with pytest.raises(ConfigError) as caught:
        campaign(tmp_path, **{stage: section})
    (problem,) = caught.value.problems
    assert problem.startswith(said)


def test_all_of_them_are_named_at_once(campaign: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        campaign(tmp_path, sft={"trainer_args": {"packing": True, "completion_only_loss": False, "eval_steps": 3}})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == [
        f"sft.trainer_args.{name}" for name in ("packing", "completion_only_loss", "eval_steps")
    ]


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_trl_sets_itself_is_a_value_that_may_be_set_and_nonsense_is_not(kind: str) -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(SCHEMAS[kind][0])}
    for name in ALLOWED[kind]:
        default = defaults[name]
        if default not in (None, dataclasses.MISSING, "") and not (name == "neftune_noise_alpha" or default == []):
            value = getattr(default, "value", default)
            assert wrong_values(kind, {name: value}) == {}, name
        for nonsense in (float("nan"), [None], -1.5, "\u202e nonsense", object()):
            is_text = isinstance(nonsense, str) and wrong_values(kind, {name: "nonsense"}) == {}
            is_number = nonsense == -1.5 and name == "f_alpha_divergence_coef"
            assert is_text or is_number or list(wrong_values(kind, {name: nonsense})) == [name], (name, nonsense)


def test_what_does_nothing_beside_another_argument_is_an_argument_that_may_be_set() -> None:
    everything = frozenset().union(*ALLOWED.values())
    assert set(NOT_WITH) <= everything and {other for other, _ in NOT_WITH.values()} <= everything
