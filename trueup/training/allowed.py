"""Which arguments of TRL's trainers `trainer_args` may set, and why it refuses each of the others.

Trueup tokenises the rows, samples the answers and evaluates by itself, so TRL would accept many of its arguments and
they would change nothing. Such an argument is refused by name, with the key to use instead. An argument that is in no
list here is refused too, because nobody has seen it work.

Plain names, without torch or TRL, so that a campaign file is checked as it is read;
tests/trueup/training/test_allowed.py compares the lists with the fields of TRL's configs, and shows that every allowed
argument changes something.

TRL and transformers check most values only in a training step, and some never: a negative weight decay trains, an
unknown loss stops a stage after its rollout. The allowed values stand here too, and `trueup check` applies them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError

from trueup.errors import did_you_mean
from trueup.files import Json

# ---- What may be set --------------------------------------------------------------------------------------------

_OPTIMISER = "adam_beta1 adam_beta2 adam_epsilon weight_decay lr_scheduler_kwargs"
_MEMORY = "gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps"
_PROCESSES = (
    "accelerator_config average_tokens_across_devices ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb "
    "ddp_find_unused_parameters ddp_static_graph ddp_timeout deepspeed fsdp fsdp_config tf32"
)
_TOLD = "debug log_level log_level_replica log_on_each_node project run_name trackio_bucket_id trackio_space_id"
_ALWAYS = f"{_OPTIMISER} {_MEMORY} {_PROCESSES} {_TOLD} trackio_static_space_id full_determinism"
_LOADER = "dataloader_num_workers dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor"
_ROWS = f"optim {_LOADER} pad_to_multiple_of"

ALLOWED: Mapping[str, frozenset[str]] = {
    name: frozenset(f"{_ALWAYS} {more}".split())
    for name, more in {
        "sft": f"{_ROWS} neftune_noise_alpha label_smoothing_factor loss_type",
        "reward": f"{_ROWS} neftune_noise_alpha",
        "dpo": f"{_ROWS} f_divergence_type f_alpha_divergence_coef use_weighting",
        "simpo": f"optim {_LOADER}",
        "kto": _ROWS,
        "best_of_n": _ROWS,
        "ppo": "",
        "grpo": "optim epsilon epsilon_high delta loss_type scale_rewards importance_sampling_level "
        "mask_truncated_completions entropy_coef top_entropy_quantile off_policy_mask_threshold "
        "use_bias_correction_kl sapo_temperature_neg sapo_temperature_pos vespo_k_neg vespo_k_pos vespo_lambda_neg "
        "vespo_lambda_pos",
        "rloo": "optim epsilon epsilon_high mask_truncated_completions normalize_advantages reward_clip_range",
    }.items()
}
"""The arguments that reach TRL and have an effect there, by stage, or by algorithm of `align`."""

GOES_WITH: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "f_alpha_divergence_coef": ("f_divergence_type", ("alpha_divergence",)),
    "sapo_temperature_neg": ("loss_type", ("sapo",)),
    "sapo_temperature_pos": ("loss_type", ("sapo",)),
    **{f"vespo_{name}": ("loss_type", ("vespo",)) for name in ("k_neg", "k_pos", "lambda_neg", "lambda_pos")},
    "gradient_checkpointing_kwargs": ("gradient_checkpointing", (True,)),
    "dataloader_persistent_workers": ("dataloader_num_workers", ()),
    "dataloader_prefetch_factor": ("dataloader_num_workers", ()),
    "fsdp_config": ("fsdp", ()),
}
"""Arguments that do nothing without another: {argument: (the other, the values of it that matter; empty: any)}."""
_UNCLIPPED = ("sapo", "vespo")
NOT_WITH: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "epsilon": ("loss_type", _UNCLIPPED),
    "epsilon_high": ("loss_type", _UNCLIPPED),
    "delta": ("loss_type", ("cispo", *_UNCLIPPED)),
    "importance_sampling_level": ("loss_type", ("vespo",)),
    "label_smoothing_factor": ("loss_type", ("dft",)),
}
"""Arguments that do nothing beside another: {argument: (the other, the values of it that switch them off)}."""
_OF_TRACKERS = frozenset("project run_name trackio_bucket_id trackio_space_id trackio_static_space_id".split())

# ---- Why the others are refused ---------------------------------------------------------------------------------

_INSTEAD = {
    "activation_checkpointing": "gradient_checkpointing",
    "activation_checkpointing_kwargs": "gradient_checkpointing_kwargs",
    "beta": "{stage}.kl_coef",
    "bf16": "{section}.dtype",
    "bf16_full_eval": "{section}.dtype",
    "chat_template_path": "{section}.chat_template",
    "data_seed": "seed",
    "disable_dropout": "{stage}.lora.lora_dropout; any other dropout is off while preferences are trained",
    "epsilon": "{stage}.cliprange",
    "fp16": "{section}.dtype",
    "fp16_full_eval": "{section}.dtype",
    "generation_batch_size": "{stage}.rollout_batch_size",
    "gradient_accumulation_steps": "{stage}.train_batch_size and {stage}.per_device_train_batch_size",
    "max_completion_length": "{stage}.max_new_tokens",
    "model_init_kwargs": "the keys of {section}",
    "num_iterations": "{stage}.num_ppo_epochs",
    "num_generations_eval": "{stage}.eval_prompts",
    "output_dir": "run_dir",
    "per_device_eval_batch_size": "{stage}.per_device_train_batch_size",
    "simpo_gamma": "{stage}.target_margin",
    "reward_weights": "{stage}.rewards, which maps each reward to its weight",
    "trust_remote_code": "{section}.trust_remote_code",
    "use_cpu": "{section}.device",
}
"""{argument of TRL: the key to use instead}. An argument with the name of a key of the stage needs no entry."""

_REASONS = {
    "Trueup tokenises and labels the rows itself, so that what is trained is the text of the row": (
        "assistant_only_loss completion_only_loss dataset_kwargs dataset_num_proc dataset_text_field eos_token "
        "eval_packing label_names pad_token packing packing_strategy padding_free remove_unused_columns truncation_mode"
    ),
    "Trueup's own sampler makes the batches, of rows of like length, by the seed": (
        "auto_find_batch_size dataloader_drop_last dataloader_in_order dataloader_multiprocessing_context "
        "ignore_data_skip length_column_name shuffle_dataset steps_per_generation train_sampling_strategy"
    ),
    "the trainer evaluates nothing: the stage measures before and after, and align.keep_steps keeps steps between": (
        "batch_eval_metrics do_eval do_predict do_train eval_accumulation_steps eval_delay eval_do_concat_batches "
        "eval_on_start eval_steps eval_strategy eval_use_gather_object greater_is_better include_for_metrics "
        "generate_during_eval load_best_model_at_end metric_for_best_model prediction_loss_only"
    ),
    "checkpoints serve to continue after an interruption, which needs them as Trueup writes them": (
        "enable_jit_checkpoint restore_callback_states_from_checkpoint resume_from_checkpoint save_on_each_node "
        "save_only_model save_strategy save_total_limit"
    ),
    "nothing is uploaded while a stage trains; `trueup export` makes a folder that can be": (
        "hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token log_completions_hub_repo "
        "push_to_hub"
    ),
    "metrics.jsonl has a row for every step, and a number that is not finite stops the stage": (
        "disable_tqdm include_num_input_tokens_seen log_completions log_multimodal log_unique_prompts "
        "logging_first_step logging_nan_inf_filter logging_steps logging_strategy num_completions_to_print "
        "skip_memory_metrics"
    ),
    "Trueup's own sampler draws the answers, from the very policy that is trained": (
        "cache_implementation chat_template_kwargs ds3_gather_for_generation generation_kwargs "
        "max_tool_calling_iterations min_p repetition_penalty top_k top_p transformers_continuous_batching_config "
        "use_transformers_continuous_batching use_transformers_paged use_vllm vllm_enable_sleep_mode "
        "vllm_gpu_memory_utilization vllm_group_port vllm_importance_sampling_cap vllm_importance_sampling_clip_max "
        "vllm_importance_sampling_clip_min vllm_importance_sampling_correction vllm_importance_sampling_mode "
        "vllm_max_model_length vllm_mode vllm_model_impl vllm_server_base_url vllm_server_host vllm_server_port "
        "vllm_server_timeout vllm_structured_outputs_regex vllm_tensor_parallel_size"
    ),
    "the reference is the SFT policy from the first step to the last, and its log-probabilities are computed before": (
        "ld_alpha precompute_ref_batch_size precompute_ref_log_probs ref_model_mixup_alpha ref_model_sync_steps "
        "sync_ref_model"
    ),
    "there is one loss, and one reward, the weighted sum of align.rewards": (
        "discopop_tau loss_weights multi_objective_aggregation"
    ),
    "log-probabilities of one policy must be the same whenever they are computed": "neftune_noise_alpha",
    "accelerate or torchrun start the processes and tell each its rank and its part": ("local_rank parallelism_config"),
    "it belongs to another loss of TRL's CPO than SimPO": "alpha cpo_alpha label_smoothing",
    "it is not tested with what Trueup puts around the trainer": (
        "activation_offloading cast_lm_head_to_fp32 entropy_coef_delta entropy_coef_max entropy_coef_min "
        "entropy_target liger_kernel_config optim_args optim_target_modules router_aux_loss_coef torch_compile "
        "is_encoder_decoder torch_compile_backend torch_compile_mode "
        "use_adaptive_entropy use_cache use_liger_kernel"
    ),
}
REFUSED: Mapping[str, str] = {name: reason for reason, names in _REASONS.items() for name in names.split()}
_OF_OTHER_TRAINERS = {
    "ppo": "it belongs to GRPO's loss or TRL's own optimiser, and PPO has its own: see the keys of align",
    "sft": "SFT has label_smoothing_factor",
    "kto": "KTO has one loss here, and its keys are those of align",
    "simpo": "SimPO has one loss here, and its keys are those of align",
}


def problems(
    kind: str, stage: str, keys: Mapping[str, Any], args: Mapping[str, Any], tracked: bool, section: str = "model"
) -> list[str]:
    """What is wrong with `trainer_args`, one line each, from the key on.

    kind     stage, or algorithm of `align`: a key of ALLOWED
    keys     the keys of the stage's own section
    args     the arguments
    tracked  whether `report_to` names a tracker
    section  the section of the model that is trained
    """
    sentences = []
    for name in args:
        reason = _reason(kind, stage, keys, args, name, tracked, section)
        if reason:
            sentences.append(f"trainer_args.{name}: {reason}")
    return sentences


def _reason(
    kind: str, stage: str, keys: Mapping[str, Any], args: Mapping[str, Any], name: str, tracked: bool, section: str
) -> str | None:
    if name in keys:
        return f"is set by Trueup; use {stage}.{name}"
    if name not in ALLOWED[kind]:
        if name in _INSTEAD:
            return f"is set by Trueup; use {_INSTEAD[name].format(stage=stage, section=section)}"
        if name in REFUSED:
            return f"is refused: {REFUSED[name]}"
        if any(name in names for names in ALLOWED.values()):
            return f"would do nothing: {_OF_OTHER_TRAINERS.get(kind, f'the loss of {kind} does not have it')}"
        return f"no argument that Trueup knows{did_you_mean(name, sorted(ALLOWED[kind]))}"
    if name in _OF_TRACKERS and not tracked:
        return f"would do nothing: {stage}.report_to names no tracker"
    other, values = GOES_WITH.get(name, (None, ()))
    if other is not None and (other not in args or (values and args[other] not in values)):
        return f"would do nothing without {other}{f': {values[0]}'.lower() if values else ''}"
    other, values = NOT_WITH.get(name, (None, ()))
    if other is not None and args.get(other) in values:
        return f"would do nothing with {other}: {args[other]}"
    return None


# ---- What a value may be ----------------------------------------------------------------------------------------


def _words_of_fsdp(value: str) -> str:
    options = "full_shard shard_grad_op no_shard hybrid_shard hybrid_shard_zero2 offload auto_wrap".split()
    for word in value.split():
        if word not in options:
            raise ValueError(f"{word} is not one of {', '.join(options)}")
    return value


def _from_low_to_high(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] >= value[1]:
        raise ValueError("the first must be less than the second")
    return value


_Number = Annotated[float, Field(strict=True)]
_Positive = Annotated[float, Field(strict=True, gt=0)]
_NotNegative = Annotated[float, Field(strict=True, ge=0)]
_Share = Annotated[float, Field(strict=True, ge=0, lt=1)]
_Count = Annotated[int, Field(strict=True, ge=1)]
_YesOrNo = Annotated[bool, Field(strict=True)]
_FileOrMapping = str | Json
_OFTEN: Mapping[Any, str] = {
    _YesOrNo: "average_tokens_across_devices ddp_broadcast_buffers ddp_find_unused_parameters ddp_static_graph tf32 "
    "gradient_checkpointing log_on_each_node full_determinism dataloader_persistent_workers dataloader_pin_memory "
    "use_weighting mask_truncated_completions use_bias_correction_kl normalize_advantages",
    _Count: "torch_empty_cache_steps dataloader_prefetch_factor ddp_bucket_cap_mb ddp_timeout",
    _Share: "adam_beta1 adam_beta2 label_smoothing_factor",
    _NotNegative: "weight_decay entropy_coef",
    _Positive: "adam_epsilon neftune_noise_alpha epsilon epsilon_high off_policy_mask_threshold sapo_temperature_neg "
    "sapo_temperature_pos vespo_k_neg vespo_k_pos vespo_lambda_neg vespo_lambda_pos",
    _Number: "f_alpha_divergence_coef",
    _FileOrMapping: "accelerator_config deepspeed fsdp_config",
    Json: "lr_scheduler_kwargs",
    str: "optim project run_name trackio_bucket_id trackio_space_id trackio_static_space_id",
    Literal["debug", "info", "warning", "error", "critical", "passive"]: "log_level log_level_replica",
}
_OWN: Mapping[str, Any] = {
    "dataloader_num_workers": Annotated[int, Field(strict=True, ge=0)],
    "ddp_backend": Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"],
    "debug": Literal["underflow_overflow"],
    "delta": Annotated[float, Field(strict=True, gt=1)],
    "f_divergence_type": Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"],
    "fsdp": _YesOrNo | Annotated[str, AfterValidator(_words_of_fsdp)],
    "gradient_checkpointing_kwargs": dict[Literal["use_reentrant", "preserve_rng_state"], _YesOrNo],
    "importance_sampling_level": Literal["token", "sequence"],
    "loss_type": Literal["grpo", "dapo", "bnpo", "dr_grpo", "cispo", "sapo", "luspo", "vespo"],
    "pad_to_multiple_of": _Count | Literal["auto"],
    "reward_clip_range": Annotated[tuple[_Number, _Number], AfterValidator(_from_low_to_high)],
    "scale_rewards": _YesOrNo | Literal["group", "batch", "none"],
    "top_entropy_quantile": Annotated[float, Field(strict=True, gt=0, le=1)],
}
_VALUES: Mapping[str, Any] = {**{name: kind for kind, names in _OFTEN.items() for name in names.split()}, **_OWN}
"""The type of each argument's value."""
_LOSSES_OF_SFT = Literal["nll", "dft"]


def wrong_values(kind: str, args: Mapping[str, Any]) -> dict[str, str]:
    """The problem of each wrong value, by argument; `kind` as in `problems`."""
    wrong = {}
    for name, value in args.items():
        try:
            _reader(_LOSSES_OF_SFT if (kind, name) == ("sft", "loss_type") else _VALUES[name]).validate_python(value)
        except ValidationError as error:
            messages = dict.fromkeys(detail["msg"].removeprefix("Value error, ") for detail in error.errors())
            wrong[name] = f"{', or: '.join(messages)} (found {value!r})"
    return wrong


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
