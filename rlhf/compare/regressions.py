"""Did alignment break what the SFT policy could do? Both policies answer prompts that a program verifies, and read
demonstrations that nothing trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.checks import Check, load_check, paired_accuracy
from rlhf.compare.answers import ALIGNED, SFT, sample_policy
from rlhf.compare.config import CompareConfig
from rlhf.compare.inputs import trained_questions
from rlhf.compare.schema import CheckResult
from rlhf.config import CheckConfig
from trueup.artifacts.reports import Estimate
from trueup.console import say
from trueup.data.duplicates.training import like_trained
from trueup.data.records import CandidateSet
from trueup.data.split import opening_id
from trueup.models.chat import Encoded, encode_prompt
from trueup.models.encoding import RefusedRows, encode_rows
from trueup.models.loading import Loaded, SavedPolicy
from trueup.models.sampling import Decoding
from trueup.runs import FinishedStage, StageRun


def read_checks(configs: Sequence[CheckConfig], seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    """The checks that are wanted, in their order. A prompt that cannot be asked as it reads is refused by name."""
    checks = [load_check(check.kind, check.path, check.limit, seed) for check in configs]
    refused = RefusedRows()
    for check in checks:
        encode_rows(check.prompts, lambda row, changes: encode_prompt(tokenizer, row.prompt, changes), refused)
    refused.stop()
    return checks


def check_policies(
    checks: Sequence[Check],
    config: CompareConfig,
    policies: dict[str, SavedPolicy],
    training_stages: Sequence[FinishedStage],
    stage: StageRun,
) -> dict[str, CheckResult]:
    """{check: accuracy of both policies, McNemar's test, what was left out}. Answers are the likeliest ones."""
    pairs = zip(config.checks, checks, strict=True)
    return {
        check_config.kind: check_one(check_config, check, config, policies, training_stages, stage)
        for check_config, check in pairs
    }


def check_one(
    check_config: CheckConfig,
    check: Check,
    config: CompareConfig,
    policies: dict[str, SavedPolicy],
    training_stages: Sequence[FinishedStage],
    stage: StageRun,
) -> CheckResult:
    trained_prompts = set().union(*(training_stage.trained_prompts for training_stage in training_stages))
    near: Collection[int] = ()
    if config.split.near_duplicates == "drop":
        prompts, places = [row.prompt for row in check.prompts], [row.where for row in check.prompts]
        near = like_trained(prompts, places, trained_questions(training_stages))
    indices = [
        i for i, row in enumerate(check.prompts) if i not in near and opening_id(row.prompt) not in trained_prompts
    ]
    left_out = len(check.prompts) - len(indices)
    rows = [
        CandidateSet(prompt_id=row.prompt_id, prompt=row.prompt, split="heldout", candidates=[], sampler={})
        for row in (check.prompts[i] for i in indices)
    ]
    stage.add_input(check_config.path, len(indices))
    say(f"{check_config.kind:<12} {check.note}; {left_out} left out, since a stage trained on them or nearly did")
    thinking = config.model.thinking_budget(check_config.max_thinking_tokens)
    greedy = Decoding(check_config.max_new_tokens, top_k=1, max_thinking_tokens=thinking)
    right = {}
    for name in (SFT, ALIGNED):
        answers = sample_policy(f"{check_config.kind}-{name}", policies[name], rows, greedy, 1, config, stage.dir)
        right[name] = [check.verify(i, row[0].text) for i, row in zip(indices, answers, strict=True)]
    result = paired_accuracy(right[SFT], right[ALIGNED], config.confidence)
    say(f"{check_config.kind:<12} {_share(result.sft)} right before, {_share(result.aligned)} after")
    return CheckResult(
        **dict(result), verifier=check.verifier, prompts=check.note, left_out=left_out, unsupported=check.unsupported
    )


def _share(accuracy: Estimate) -> str:
    return "none" if accuracy.value is None else f"{accuracy.value:.0%} of {accuracy.n}"


@torch.inference_mode()
def heldout_loss(policy: Loaded, rows: Sequence[Encoded]) -> float | None:
    """Nats per trained token of held-out demonstrations; None without."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([row.input_ids], device=policy.placement.device)
        labels = torch.tensor([row.labels], device=policy.placement.device)
        num_trained = int((labels[:, 1:] != -100).sum())
        total += float(policy.model(input_ids=ids, labels=labels).loss) * num_trained
        count += num_trained
    return total / count if count else None
