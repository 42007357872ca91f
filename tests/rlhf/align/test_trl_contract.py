"""What PPO takes from TRL, transformers and PEFT without their promise. When one of these fails, a new release changed
something that rlhf/align/ stands on: read the change before mending the
test."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

import pytest
from peft import PeftModel
from transformers import PreTrainedModel, Trainer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.online_dpo import OnlineDPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.utils import add_fused_lm_head


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_release_is_one_that_was_tried() -> None:
    assert version("trl").startswith("1.16."), (
        "pyproject.toml pins trl>=1.16,<1.17; try the tests here on another first"
    )


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        ("_generate_and_score_completions", ["self", "inputs"]),
        ("_prepare_inputs", ["self", "generation_batch"]),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("compute_loss", ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
    ],
)
def test_grpo_still_calls_what_ppo_replaces(method: str, takes: list[str]) -> None:
    assert parameters(getattr(GRPOTrainer, method)) == takes


def test_grpo_takes_answers_that_were_drawn_elsewhere() -> None:
    assert "rollout_func" in parameters(GRPOTrainer.__init__)
    source = inspect.getsource(GRPOTrainer._generate)
    assert 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}' in source
    assert 'tool_mask = extra_fields.pop("env_mask", None)' in source
    assert 'output["tool_mask"] = tool_mask' in inspect.getsource(GRPOTrainer._generate_and_score_completions)


@pytest.mark.parametrize("trainer", [GRPOTrainer, RLOOTrainer])
def test_a_rollout_still_logs_a_figure_of_ours(trainer: type) -> None:
    assert parameters(trainer._log_metric) == ["self", "name", "value"]  # type: ignore[attr-defined]
    assert "in sorted(set(gather_object(list(self._pending_metrics))))" in inspect.getsource(trainer)


def test_rloo_still_draws_and_reads_by_what_is_replaced() -> None:
    for method, takes in (
        ("_tokenize_prompts", ["self", "prompts"]),
        ("_generate_single_turn", ["self", "prompt_ids", "images", "multimodal_fields"]),
    ):
        assert parameters(getattr(RLOOTrainer, method)) == takes
    reading = parameters(RLOOTrainer._get_per_token_logps_and_entropies)
    assert reading[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]


def test_a_rollout_holds_the_four_tensors_that_ppo_reads() -> None:
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask"):
        assert f'"{key}": {key}' in source, key
    # Old log-probabilities may be None and are then left out; that is what PPO answers.
    assert "old_per_token_logps, _, _ = self._get_per_token_logps_and_entropies(" in source
    assert "if old_per_token_logps is not None:" in source


def test_grpo_counts_its_steps_and_keeps_its_metrics_where_ppo_looks() -> None:
    source = inspect.getsource(GRPOTrainer)
    for attribute in ('self._metrics = {"train"', "self._step = 0", "self._logs = {", "self.eos_token_ids ="):
        assert attribute in source, attribute


def test_the_fused_head_gives_log_probabilities_and_entropies_at_a_temperature() -> None:
    assert {"model", "temperature", "outputs"} <= set(parameters(add_fused_lm_head))


@pytest.mark.parametrize("schema", [GRPOConfig, RLOOConfig])
def test_the_arguments_of_rollouts_are_still_called_so(schema: type) -> None:
    wanted = {"num_generations", "generation_batch_size", "max_completion_length", "temperature", "top_k", "top_p"}
    assert wanted | {"num_iterations", "beta", "disable_dropout", "shuffle_dataset"} <= set(parameters(schema))


def test_transformers_saves_and_loads_where_ppo_does_it_its_own_way() -> None:
    assert parameters(Trainer._save) == ["self", "output_dir", "state_dict"]
    assert parameters(Trainer._load_from_checkpoint) == ["self", "resume_from_checkpoint", "model"]
    assert parameters(Trainer.create_optimizer)[0] == "self"


def test_all_ways_to_enable_checkpointing_end_in_one() -> None:
    wanted = {"enable", "gradient_checkpointing_func"}
    assert wanted <= set(parameters(PreTrainedModel._set_gradient_checkpointing))


def test_peft_sets_the_flags_of_named_adapters() -> None:
    assert parameters(PeftModel.set_requires_grad) == ["self", "adapter_names", "requires_grad"]
    assert "selected_adapters" in parameters(PeftModel.save_pretrained)


# ---- SimPO, and the trainers that are not used ------------------------------------------------------------------


def test_cpo_still_calls_what_simpo_replaces() -> None:
    assert parameters(CPOTrainer.cpo_loss) == ["self", "policy_chosen_logps", "policy_rejected_logps"]
    assert parameters(CPOTrainer.get_batch_loss_metrics) == ["self", "model", "batch", "train_eval"]
    assert "train_dataset.map(self.tokenize_row" in inspect.getsource(CPOTrainer.__init__)


def test_orpo_still_imitates_the_prompt_with_the_answer_which_keeps_it_out() -> None:
    """Otherwise its first loss is that of the chosen answers, and `align.algorithm: orpo` could pass our check."""
    source = inspect.getsource(ORPOTrainer.concatenated_forward)
    assert "orpo chosen nll loss is computed over the full prompt and response" in source


def test_online_dpo_still_prefers_the_first_of_two_answers_that_are_paid_alike_which_keeps_it_out() -> None:
    """So does an answer without an opinion lose or win: its reward is NaN, and no comparison with it holds."""
    assert "mask = first_half >= second_half" in inspect.getsource(OnlineDPOTrainer.training_step)
