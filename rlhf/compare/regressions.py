"""Did alignment break what the SFT policy could do? Both policies answer prompts that a program verifies."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rlhf.checks import Check, load_check, paired
from rlhf.compare.answers import ALIGNED, SFT, sample_policy
from rlhf.compare.config import CompareConfig
from rlhf.compare.schema import CheckResult
from rlhf.config import CheckConfig
from trueup.artifacts.reports import Estimate
from trueup.console import say
from trueup.data.records import CandidateSet, opening_id
from trueup.models.chat import encode_prompt
from trueup.models.encoding import RefusedRows, encode_rows
from trueup.models.loading import SavedPolicy
from trueup.models.sampling import Decoding
from trueup.runs import FinishedStage, StageRun


def read_checks(wanted: Sequence[CheckConfig], seed: int, tokenizer: PreTrainedTokenizerBase) -> list[Check]:
    """The checks that are wanted, in their order. A prompt that cannot be asked as it reads is refused by name."""
    checks = [load_check(check.kind, check.path, check.limit, seed) for check in wanted]
    refused = RefusedRows()
    for check in checks:
        encode_rows(check.prompts, lambda row, told: encode_prompt(tokenizer, row.prompt, told), refused)
    refused.stop()
    return checks


def check_policies(
    checks: Sequence[Check],
    config: CompareConfig,
    policies: dict[str, SavedPolicy],
    trained: Sequence[FinishedStage],
    stage: StageRun,
) -> dict[str, CheckResult]:
    """{check: accuracy of both policies, McNemar's test, what was left out}. Answers are the likeliest ones."""
    asked = zip(config.checks, checks, strict=True)
    return {wanted.kind: check_one(wanted, check, config, policies, trained, stage) for wanted, check in asked}


def check_one(
    wanted: CheckConfig,
    check: Check,
    config: CompareConfig,
    policies: dict[str, SavedPolicy],
    trained: Sequence[FinishedStage],
    stage: StageRun,
) -> CheckResult:
    seen = set().union(*(done.trained_prompts for done in trained))
    kept = [i for i, row in enumerate(check.prompts) if opening_id(row.prompt) not in seen]
    left_out = len(check.prompts) - len(kept)
    rows = [
        CandidateSet(prompt_id=row.prompt_id, prompt=row.prompt, split="heldout", candidates=[], sampler={})
        for row in (check.prompts[i] for i in kept)
    ]
    stage.add_input(wanted.path, len(kept))
    say(f"{wanted.kind:<12} {check.note}; {left_out} of them left out, since a stage trained on them")
    greedy = Decoding(wanted.max_new_tokens, top_k=1)
    right = {}
    for name in (SFT, ALIGNED):
        answers = sample_policy(f"{wanted.kind}-{name}", policies[name], rows, greedy, 1, config, stage.dir)
        right[name] = [check.verify(i, row[0].text) for i, row in zip(kept, answers, strict=True)]
    result = paired(right[SFT], right[ALIGNED], config.confidence)
    say(f"{wanted.kind:<12} {_share(result.sft)} right before, {_share(result.aligned)} after")
    return CheckResult(
        **dict(result), verifier=check.verifier, prompts=check.note, left_out=left_out, unsupported=check.unsupported
    )


def _share(accuracy: Estimate) -> str:
    return "none" if accuracy.value is None else f"{accuracy.value:.0%} of {accuracy.n}"
