"""The align section for PPO, GRPO and RLOO: what it may say, what it reads, and when a result still stands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlhf.align.config import ALGORITHMS
from rlhf.align.config.online import PPOConfig
from trueup.errors import ConfigError

ONLINE = ["ppo", "grpo", "rloo"]


@pytest.fixture
def align(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The align section of the tiny campaign with these keys, in rollouts of 8; `folder` holds the campaign file."""

    def load(folder: Path = tmp_path, **keys: Any) -> Any:
        folder.mkdir(exist_ok=True)
        return campaign(folder, align={"algorithm": "ppo", "rollout_batch_size": 8, **keys}).stages["align"]

    return load


@pytest.fixture
def refused(align: Callable[..., Any]) -> Callable[..., str]:
    def problem(**keys: Any) -> str:
        with pytest.raises(ConfigError) as caught:
            align(**keys)
        (said,) = caught.value.problems
        return said

    return problem


@pytest.mark.parametrize("algorithm", ONLINE)
def test_an_algorithm_is_chosen_by_its_key_and_starts_with_its_defaults(align: Any, algorithm: str) -> None:
    config = align(algorithm=algorithm)
    assert type(config) is ALGORITHMS[algorithm]
    assert (config.rewards, config.prompts, config.max_steps) == ({"reward_model": 1.0}, None, 4)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rollout_batch_size": 10}, "align: train_batch_size 4 does not divide rollout_batch_size 10"),
        ({"num_generations": 3}, "align: num_generations 3 does not divide rollout_batch_size 8"),
        ({"num_generations": 1}, "align.num_generations: Input should be greater than or equal to 2 (found 1)"),
        ({"rewards": {}}, "align.rewards: Dictionary should have at least 1 item after validation, not 0 (found {})"),
        (
            {"rewards": {"rubrik": 1.0}},
            "align: rewards.rubrik: neither one of reward_model, rubric, ifeval, gsm8k, nor of the form "
            "file.py:function",
        ),
        (
            {"rewards": {"mine.py:2nd": 1.0}},
            "align: rewards.mine.py:2nd: neither one of reward_model, rubric, ifeval, gsm8k, nor of the form "
            "file.py:function",
        ),
        (
            {"rewards": {"a/mine.py:f": 1.0, "b/mine.py:f": 0.5}},
            "align: rewards: two functions are called mine.py:f; rename one, or its file",
        ),
        (
            {"rewards": {"ifeval": 1.0}},
            "align: rewards.ifeval: goes with an entry of that kind in checks, which names its prompts",
        ),
        (
            {"checks": [{"kind": "gsm8k", "path": "g.jsonl"}]},
            "align: rewards.gsm8k: goes with an entry of that kind in checks, which names its prompts",
        ),
        (
            {"checks": [{"kind": "gsm8k", "path": "g.jsonl", "max_new_tokens": 9}], "rewards": {"gsm8k": 1.0}},
            "align: checks.max_new_tokens: answers are drawn with align.max_new_tokens: leave it out here",
        ),
        (
            {"full_finetuning": True, "lora": {"r": 16}},
            "align.lora: does nothing beside full_finetuning, which trains no adapter: leave one of them out",
        ),
        (
            {"ptx_coef": 0.1},
            "align: ptx_coef and ptx_data go together: a weight, and files of demonstrations",
        ),
        (
            {"ptx_data": ["starter"]},
            "align: ptx_coef and ptx_data go together: a weight, and files of demonstrations",
        ),
        (
            {"trainer_args": {"top_p": 0.9}},
            "align.trainer_args.top_p: is refused: Trueup's own sampler draws the answers, from the very policy "
            "that is trained",
        ),
        (
            {"trainer_args": {"mask_truncated_completions": True}},
            "align.trainer_args.mask_truncated_completions: would do nothing: it belongs to GRPO's loss or TRL's "
            "own optimiser, and PPO has its own: see the keys of align",
        ),
        (
            {"lora": {"lora_dropout": 0.1}},
            "align: lora.lora_dropout: 0.1 would make the log-probabilities of one policy differ from reading to "
            "reading, and ppo lives on their ratios: leave it at 0",
        ),
        ({"kl_cof": 0.1}, "align.kl_cof: unknown key; did you mean kl_coef?"),
    ],
)
def test_what_cannot_be_trained_is_said_with_its_key(refused: Any, keys: dict[str, Any], said: str) -> None:
    assert refused(**keys) == said


@pytest.mark.parametrize("algorithm", ONLINE)
def test_what_would_change_the_rollouts_behind_the_schedule_is_refused_of_every_algorithm(
    refused: Any, algorithm: str
) -> None:
    for key in ("generation_batch_size", "steps_per_generation", "max_completion_length", "top_k"):
        assert refused(algorithm=algorithm, trainer_args={key: 5}).startswith(f"align.trainer_args.{key}: is ")


def test_grpo_may_be_told_of_its_own_loss(align: Any) -> None:
    assert align(algorithm="grpo", trainer_args={"loss_type": "dr_grpo"}).trainer_args == {"loss_type": "dr_grpo"}


def test_a_reward_function_is_looked_for_beside_the_campaign_file(align: Any, tmp_path: Path) -> None:
    config = align(rewards={"mine.py:short": 1.0, "/elsewhere/mine.py:long": 2.0, "~/mine.py:kind": 3.0, "rubric": 4.0})
    assert config.rewards == {
        f"{tmp_path}/mine.py:short": 1.0,
        "/elsewhere/mine.py:long": 2.0,
        f"{Path.home()}/mine.py:kind": 3.0,
        "rubric": 4.0,
    }
    assert config.reward_files == [tmp_path / "mine.py", Path("/elsewhere/mine.py"), Path.home() / "mine.py"]


def test_a_campaign_that_was_moved_keeps_its_result_and_another_weight_or_function_does_not(
    align: Any, tmp_path: Path
) -> None:
    def identity(folder: str = "here", rewards: Any = None, **keys: Any) -> str:
        return align(tmp_path / folder, rewards=rewards or {"mine.py:f": 1.0, "rubric": 0.5}, **keys).sha256()

    same = identity()
    assert identity("moved") == same
    assert identity(rewards={f"{tmp_path}/other/mine.py:f": 1.0, "rubric": 0.5}) == same
    others = [
        identity(rewards={"mine.py:f": 2.0, "rubric": 0.5}),
        identity(rewards={"mine.py:g": 1.0, "rubric": 0.5}),
        identity(rewards={"mine.py:f": 1.0}),
        identity(prompts="prompts.jsonl"),
        identity(kl_coef=0.1),
        identity(algorithm="grpo"),
    ]
    assert len({same, *others}) == 7


def test_parents_are_the_stages_that_are_read_and_no_others(align: Any) -> None:
    assert align().parents() == ("sft", "sample", "reward")
    assert align(prompts="prompts.jsonl").parents() == ("sft", "reward")
    assert align(rewards={"rubric": 1.0}).parents() == ("sft", "sample")
    assert align(prompts="starter", rewards={"rubric": 1.0}).parents() == ("sft",)


def test_every_file_that_is_read_is_an_input(align: Any, tmp_path: Path) -> None:
    assert align().input_paths() == []
    config = align(
        prompts="prompts.jsonl",
        rewards={"gsm8k": 1.0, "mine.py:f": 1.0},
        checks=[{"kind": "gsm8k", "path": "g.jsonl"}],
        ptx_coef=0.1,
        ptx_data=["demonstrations.jsonl", "starter"],
    )
    assert isinstance(config, PPOConfig)
    names = ["prompts.jsonl", "g.jsonl", "mine.py", "demonstrations.jsonl"]
    assert config.input_paths()[:-1] == [tmp_path / name for name in names]
    assert config.input_paths()[-1].is_file()


def test_a_changed_rubric_makes_stale_what_it_paid_for_and_nothing_else(align: Any) -> None:
    assert align().fingerprint() == {}
    (version,) = align(rewards={"rubric": 1.0}).fingerprint().values()
    assert len(version) == 12


def test_one_file_holds_the_keys_of_several_algorithms(align: Any) -> None:
    keys = {"ppo": {"kl_coef": 0.2}, "grpo": {"beta": 0.3}}
    assert align(**keys).kl_coef == 0.2
    assert align(**keys, algorithm="grpo").beta == 0.3
