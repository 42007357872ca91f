"""A reward model that started as a probe, which reads hidden states of its own: it pays as it scores on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reward.train
import ui.label.run
from rlhf.align import online
from rlhf.align.ppo.stage import cast_roles, scores
from rlhf.align.rewards import scorer
from trueup import runs
from trueup.artifacts.reports import Normalisation
from trueup.data.records import CandidateSet, read_rows
from trueup.models import loading
from trueup.models.heads import fits_policy, pooling_of
from trueup.models.scoring import score_answers
from trueup.stages import load_object

VOWELS = """
def score(prompt, text, finished):
    return sum(text.count(letter) for letter in "aeiou") / (1 + len(text))
"""
TINY: dict[str, Any] = {
    "rollout_batch_size": 8,
    "train_batch_size": 8,
    "num_generations": 2,
    "max_new_tokens": 8,
    "max_steps": 2,
    "eval_prompts": 2,
    "keep_steps": 1,
}


@pytest.mark.parametrize(
    "align", [{"algorithm": "ppo"}, {"algorithm": "ppo", "full_finetuning": True}, {"algorithm": "grpo"}]
)
def test_an_online_algorithm_is_paid_the_score_that_the_saved_reward_model_gives(
    campaign: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], align: dict[str, Any]
) -> None:
    (tmp_path / "mine.py").write_text(VOWELS)
    made = campaign(
        tmp_path,
        label={"source": "simulated", "rubric": "mine.py:score"},
        reward={"start": "probe", "max_steps": 4},
        align={**TINY, **align},
        split={"heldout_fraction": 0.0},
    )
    stage = runs.begin(made.stages["sft"])
    base = loading.load_base(made.config.model)
    loading.save(base, stage.dir / "model")
    stage.trained_on([])
    stage.finish()
    load_object(made.stages["sample"].run)(made.stages["sample"])
    ui.label.run.run(made.stages["label"])
    saved = reward.train.run(made.stages["reward"]) / "model"
    model = loading.load_reward_model(saved, made.config.model)
    assert pooling_of(model.model) == "mean over the answer" and not fits_policy(saved, base.model)
    rows = read_rows(runs.stage_dir(made.run_dir, "sample") / "candidates.jsonl", CandidateSet)
    prompts, answers = [row.prompt for row in rows], [row.candidates[0] for row in rows]
    paid = paying(made.stages["align"])(prompts, answers).rewards
    assert paid == pytest.approx(score_answers(model, prompts, answers), abs=1e-5) and len(set(paid)) > 1
    load_object(made.stages["align"].run)(made.stages["align"])
    if align["algorithm"] == "ppo":
        assert "hidden states of another depth" in capsys.readouterr().out


def paying(config: Any) -> Any:
    """The reward model as the algorithm has it."""
    _, sft, reward_stage, policy, _, on_one_base = online.begin(config)
    assert not on_one_base and reward_stage is not None
    units = Normalisation(mean=0.0, std=1.0)
    if config.algorithm == "ppo":
        return scores(cast_roles(config, policy, sft, reward_stage, on_one_base), units)
    return scorer(online.load_reward_model(config, reward_stage), units)
