"""Merging: folds an adapter into the weights below it, in float32, and measures how far that is from the training.

bf16 keeps 8 bits of a weight. A change below half of the last bit is lost when it is added, and at the learning rates
of adapters most changes are that small. So weights are added and saved in float32. Reading them in bf16 rounds them
again. The loss is measured here, and a large one becomes a finding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call
from transformers import PreTrainedModel

from trueup.artifacts.manifest import MergeCheck
from trueup.console import say
from trueup.launching import processes
from trueup.runs import StageRun

_ROWS, _TOKENS = 4, 128
"""Training rows, and tokens of each, whose logits are compared."""
_TOLERANCE = 1e-3
"""Allowed difference, as a share of the largest logit: float32 keeps about five digits over the layers."""
_LOST = 0.1
"""Share of the change in logits that rounding may undo without a finding."""


def merged(model: PreTrainedModel | PeftModel, stage: StageRun, rows: Sequence[Sequence[int]]) -> PreTrainedModel:
    """The model with its adapter `default` folded in, in float32. The stage's facts record how close the two are.

    rows  tokens of training rows, on which the logits are compared

    A model without an adapter is returned as it is.
    """
    if not isinstance(model, PeftModel):
        return model
    base = model.get_base_model()
    if processes.rank():  # the first of several processes saves its own; all would take their memory at once
        return base
    read_in = base.dtype  # later stages of this campaign read the saved model in it
    base.eval()
    quantised = getattr(base, "is_quantized", False)
    if not quantised:
        _to_float32(base)
    probes = [list(row[:_TOKENS]) for row in list(rows)[:_ROWS]]
    adapted = _logits(base, probes)
    with model.disable_adapter():
        change = [a - b for a, b in zip(adapted, _logits(base, probes), strict=True)]
    folded: Any = model.merge_and_unload(adapter_names=["default"])
    difference, largest = _distance(_logits(folded, probes), adapted), _largest(adapted)
    check = MergeCheck(
        rows=len(probes),
        max_logit_change=_largest(change),
        max_logit_difference=difference,
        saved_dtype="4 bit" if quantised else "float32",
    )
    stage.facts["merge"] = check
    say(
        f"{'merge':<12} max |logit(adapter) - logit(merged)| {difference:.1e} in {check.saved_dtype}; training "
        f"changed logits by up to {check.max_logit_change:.1e}"
    )
    if quantised:
        _judge_loss(stage, check, "4 bit", _logits(folded, probes), adapted, change)
    elif difference > _TOLERANCE * max(1.0, largest):
        stage.find(
            "fail",
            "merge_differs",
            f"max |logit(adapter) - logit(merged)| is {difference:.2g}, for logits of up to {largest:.2g}: model/ "
            "differs from what was trained; use adapter/",
        )
    elif read_in != torch.float32:
        rounded = {name: weight.to(read_in).float() for name, weight in folded.named_parameters()}
        as_read = _logits(folded, probes, rounded)
        _judge_loss(stage, check, str(read_in).removeprefix("torch."), as_read, adapted, change)
    return folded


def _judge_loss(
    stage: StageRun,
    check: MergeCheck,
    dtype: str,
    logits: Sequence[Tensor],
    adapted: Sequence[Tensor],
    change: Sequence[Tensor],
) -> None:
    """Record the share of the training's change that a lower precision loses."""
    difference = _distance(logits, adapted)
    as_read = {"read_dtype": dtype, "max_logit_difference_as_read": difference}
    stage.facts["merge"] = check = check.model_copy(update=as_read)
    if not _norm(change):
        say(f"{'':<12} in {dtype}: max difference {difference:.1e}; training changed no logit, so none is lost")
        return
    share = _norm([a - b for a, b in zip(logits, adapted, strict=True)]) / _norm(change)
    stage.facts["merge"] = check.model_copy(update={"lost_as_read": share})
    say(f"{'':<12} in {dtype}: max difference {difference:.1e}, {share:.0%} of the change in logits")
    if share > _LOST:
        stage.find(
            "warn",
            "rounded_away",
            f"whoever reads model/ in {dtype} loses {share:.0%} of what training changed (max |logit(adapter) - "
            f"logit(merged)| {difference:.2g}, training changed up to {check.max_logit_change:.2g}): "
            "read it in float32, or its parent under adapter/",
        )


def _to_float32(model: PreTrainedModel) -> None:
    """Convert in place; on the CPU if the device has no room, which is slow but does not fail a finished training."""
    if model.device.type == "cuda":
        size = 8 * model.num_parameters()  # the weights, and once more while they are rounded
        unused = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
        free = torch.cuda.mem_get_info(model.device)[0] + unused
        if size > free:
            say(f"{'merge':<12} on the CPU: float32 weights take {size / 2**30:.1f} GiB, {free / 2**30:.1f} are free")
            model.to("cpu")
    model.to(torch.float32)


@torch.no_grad()
def _logits(model: Any, rows: Sequence[Sequence[int]], weights: dict[str, Tensor] | None = None) -> list[Tensor]:
    """Logits of each row in float32, (T, V) or a reward model's (1,); `weights` replace the model's own."""
    logits = []
    for row in rows:
        inputs = {"input_ids": torch.tensor([list(row)], device=model.device), "use_cache": False}
        out = model(**inputs) if weights is None else functional_call(model, weights, kwargs=inputs)
        logits.append(out.logits[0].float())
    return logits


def _largest(tensors: Sequence[Tensor]) -> float:
    return max((tensor.abs().max().item() for tensor in tensors), default=0.0)


def _distance(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return _largest([a - b for a, b in zip(one, other, strict=True)])


def _norm(tensors: Sequence[Tensor]) -> float:
    return sum(tensor.square().sum().item() for tensor in tensors) ** 0.5
