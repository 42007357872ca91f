"""A campaign with a model that reasons before it answers: from samples to the verdict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl
from tiny_models import with_own_template

from rlhf.align.rollouts import logps_of
from rlhf.compare.answers import token_kls
from trueup import runs, stages
from trueup.data.records import Message, Preference, read_jsonl, read_rows
from trueup.errors import ConfigError
from trueup.models import loading
from trueup.models.chat import answer_text, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.loading import read_tokenizer
from trueup.models.sampling import Decoding, sample
from trueup.models.scoring import completion_kls
from trueup.models.templates.ends import turn_ends
from trueup.pages.diagnoses import LENGTH

OPENS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'].split('</think>')[-1]"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% endif %}"
)
"""As R1's: the prompt opens the block, and an answered turn is written without it."""


@pytest.fixture
def thinker(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    return with_own_template(bases("chatml"), tmp_path / "thinker", OPENS)


def completions_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, ...]]:
    """Collects the tokens of answers over which DPO's loss goes, as TRL's trainer gets them."""
    trained_ids: set[tuple[int, ...]] = set()
    compute_loss = trl.DPOTrainer.compute_loss

    def record(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows = zip(inputs["input_ids"], inputs["completion_mask"].bool(), strict=True)
        trained_ids.update(tuple(ids[mask].tolist()) for ids, mask in rows)
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trl.DPOTrainer, "compute_loss", record)
    return trained_ids


def test_reasoning_is_trained_by_dpo_and_nothing_judges_or_measures_it(
    campaign: Callable[..., Any], thinker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"name": str(thinker), "chat_template": "auto", "thinking": True}
    sample = {"max_new_tokens": 6, "max_thinking_tokens": 36}
    made = campaign(tmp_path, model=model, sft="none", sample=sample, align={"max_length": 160})
    trained_ids = completions_in_the_loss(monkeypatch)
    for stage in ("sft", "sample", "label", "reward", "align", "compare"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])

    # Sampled: each answer has its reasoning, and all of its own budget.
    run_dir = made.run_dir
    tokenizer = read_tokenizer(runs.stage_dir(run_dir, "sft") / "model", made.stages["sft"].model)
    rows = [row for _, row in read_jsonl(runs.stage_dir(run_dir, "sample") / "candidates.jsonl")]
    answers = [answer for row in rows for answer in row["candidates"]]
    assert all(row["sampler"]["max_thinking_tokens"] == 36 for row in rows)
    for answer in answers:
        assert answer["reasoning"].rstrip().endswith("</think>") and "</think>" not in answer["text"]
        assert answer["finished"] or len(answer["token_ids"]) - answer["reasoning_tokens"] == 6

    # Labelled and trained: the answer is what was judged, the tokens are all that was sampled.
    pairs = list(read_rows(runs.stage_dir(run_dir, "label") / "preferences.jsonl", Preference))
    for pair in pairs:
        for side in ("chosen", "rejected"):
            text, ids = getattr(pair, side)[0].content, getattr(pair, f"{side}_token_ids")
            assert "</think>" not in text
            whole = "<think>\n" + tokenizer.decode(ids[:-1] if getattr(pair, f"{side}_finished") else ids)
            assert whole == getattr(pair, f"{side}_reasoning") + text
    sampled = {tuple(getattr(pair, f"{side}_token_ids")) for pair in pairs for side in ("chosen", "rejected")}
    assert trained_ids and trained_ids <= sampled

    # Compared: lengths and scores are the answers'.
    for _, row in read_jsonl(runs.stage_dir(run_dir, "compare") / "samples.jsonl"):
        for answer in (*row["sft"], *row["aligned"]):
            assert answer["num_tokens"] <= 6 and answer["reasoning"].rstrip().endswith("</think>")
    page = (runs.stage_dir(run_dir, "compare") / "report.html").read_text(encoding="utf-8")
    assert '<details class="reasoning"><summary>Reasoning, ' in page


def test_reasoning_that_nobody_asked_for_is_neither_judged_nor_measured_and_is_trained(
    campaign: Callable[..., Any],
    bases: Callable[[str], Path],
    jsonl: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base model whose template knows no block, and which learns from demonstrations to write one."""
    thoughts = [
        {
            "messages": [
                {"role": "user", "content": f"Say {c}."},
                {"role": "assistant", "content": f"<think>Hm {c}.</think>It is {c}."},
            ]
        }
        for c in "red blue green black white brown pink grey gold teal lime plum navy rose sand mint".split()
    ]
    jsonl(tmp_path / "thoughts.jsonl", thoughts)
    made = campaign(
        tmp_path,
        model={"name": str(bases("chatml")), "chat_template": "chatml"},
        sft={
            "data": ["thoughts.jsonl"],
            "full_finetuning": True,
            "max_steps": 60,
            "learning_rate": 5e-3,
            "train_batch_size": 16,
        },
        sample={"max_new_tokens": 40},
        align={"max_length": 160},
        reward={"max_length": 160},
    )
    trained_ids = completions_in_the_loss(monkeypatch)
    for stage in ("sft", "sample", "label", "reward", "align", "compare"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])
    run_dir = made.run_dir
    rows = [row for _, row in read_jsonl(runs.stage_dir(run_dir, "sample") / "candidates.jsonl")]
    answers = [answer for row in rows for answer in row["candidates"]]
    reasoned = [answer for answer in answers if "reasoning" in answer]
    assert len(reasoned) > 10 and not any(answer["text"].startswith("<think>") for answer in answers)
    findings = {one.code: one.message for one in runs.open_stage(run_dir, "sample").manifest.verdict.findings}
    assert findings["reasons_unasked"].startswith(f"{len(reasoned) / len(answers):.0%} of answers")

    pairs = list(read_rows(runs.stage_dir(run_dir, "label") / "preferences.jsonl", Preference))
    tokenizer = read_tokenizer(runs.stage_dir(run_dir, "sft") / "model", made.stages["sft"].model)
    whole = {pair.chosen_reasoning + pair.chosen[0].content for pair in pairs if pair.chosen_reasoning}
    trained_texts = {tokenizer.decode(ids).removesuffix(tokenizer.eos_token) for ids in trained_ids}
    assert whole & trained_texts, "all that was sampled is trained"

    for _, row in read_jsonl(runs.stage_dir(run_dir, "compare") / "samples.jsonl"):
        for answer in (*row["sft"], *row["aligned"]):
            assert answer["num_tokens"] <= len(answer["text"].encode()) + 1 or "reasoning" not in answer, (
                "the answer alone is measured"
            )
    page = (runs.stage_dir(run_dir, "compare") / "report.html").read_text(encoding="utf-8")
    assert '<details class="reasoning"><summary>Reasoning, ' in page


REWARD = """
import json

def pay(prompts, completions, **columns):
    texts = [completion[-1]["content"] for completion in completions]
    with open({path!r}, "a") as file:
        file.writelines(json.dumps(text) + "\\n" for text in texts)
    return [float(len(text)) for text in texts]
"""
ONLINE = {
    "prompts": "prompts.jsonl",
    "rewards": {"reward.py:pay": 1.0},
    "rollout_batch_size": 8,
    "num_generations": 2,
    "eval_prompts": 2,
    "max_new_tokens": 6,
    "max_thinking_tokens": 36,
    "max_length": 160,
    "max_steps": 2,
}


def trained(algorithm: str, trainer: Any, inputs: Any) -> Any:
    """Where a batch of answers has a gradient, (B, T)."""
    if algorithm == "ppo":
        return inputs["advantages"] != 0
    if algorithm == "grpo":
        return (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    tokens, mask = (
        torch.cat([inputs[f"prompt_{part}"], inputs[f"completion_{part}"]], dim=1) for part in ("ids", "mask")
    )
    width = inputs["completion_ids"].size(1)
    return (trainer._get_per_token_logps_and_entropies(trainer.model, tokens, mask, width)[0] != 0) & inputs[
        "completion_mask"
    ].bool()


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_an_online_algorithm_trains_all_that_was_drawn_and_is_paid_for_the_answer_alone(
    algorithm: str,
    campaign: Callable[..., Any],
    thinker: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "reward.py").write_text(REWARD.format(path=str(tmp_path / "paid.jsonl")), encoding="utf-8")
    model = {"name": str(thinker), "chat_template": "auto", "thinking": True}
    made = campaign(tmp_path, model=model, sft="none", align={"algorithm": algorithm, **ONLINE})
    batches: list[tuple[list[int], list[bool]]] = []
    base = trl.RLOOTrainer if algorithm == "rloo" else trl.GRPOTrainer
    compute_loss = base.compute_loss

    def record(trainer: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            answers = inputs["completion_ids"], inputs["completion_mask"].bool(), trained(algorithm, trainer, inputs)
            batches.extend(
                (ids[mask].tolist(), where[mask].tolist()) for ids, mask, where in zip(*answers, strict=True)
            )
        return compute_loss(trainer, model, inputs, *args, **kwargs)

    monkeypatch.setattr(base, "compute_loss", record)
    for stage in ("sft", "align"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])

    tokenizer = read_tokenizer(runs.stage_dir(made.run_dir, "sft") / "model", made.stages["sft"].model)
    closing = tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"]
    answers = set()
    for ids, where in batches:
        (start,) = [i for i in range(len(ids)) if ids[i : i + len(closing)] == closing]
        behind = start + len(closing)
        assert where == [not start <= i < behind for i in range(len(ids))], "all but what was forced upon the policy"
        assert len(ids) - behind == 6 or (ids[-1] in turn_ends(tokenizer) and len(ids) - behind < 6)
        assert start, "the reasoning before it is trained"
        answers.add(answer_text(tokenizer, ids))
    assert len(batches) >= 8 and any(ids[-1] not in turn_ends(tokenizer) for ids, _ in batches)
    paid = {text for _, text in read_jsonl(tmp_path / "paid.jsonl")}
    assert answers <= paid and not any("</think>" in text for text in paid)
    figures = json.loads((runs.stage_dir(made.run_dir, "align") / "report.json").read_text(encoding="utf-8"))
    metrics = [row for _, row in read_jsonl(runs.stage_dir(made.run_dir, "align") / "metrics.jsonl")]
    (lengths,) = {tuple(row[name] for row in metrics if name in row) for name in LENGTH}
    assert lengths and all(0 < length <= 6 for length in lengths), "curves and their notes are about the answers"
    assert figures["evaluations"][0]["kl"] == pytest.approx(0, abs=1e-3), "step 0 is the SFT policy"
    if algorithm == "ppo":
        assert all(0 < rollout["length"] <= 6 for rollout in figures["rollouts"]), "lengths are the answers'"
        page = (runs.stage_dir(made.run_dir, "align") / "report.html").read_text(encoding="utf-8")
        assert '<details class="reasoning"><summary>Reasoning, ' in page


def test_tokens_that_closed_the_reasoning_by_force_are_in_no_kl(thinker: Path) -> None:
    config, question = ModelConfig(name=str(thinker), thinking=True), [Message(role="user", content="Why?")]
    policy, reference = loading.load_base(config), loading.load_base(config)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1.2)
    [[answer]] = sample(policy, [question], Decoding(6, seed=1, max_thinking_tokens=40), 1, 1)
    assert answer.closed_at
    behind = answer.closed_at + len(policy.tokenizer("\n</think>\n\n", add_special_tokens=False)["input_ids"])
    own = [not answer.closed_at <= i < behind for i in range(len(answer.token_ids))]

    logps = []
    for side in (policy, reference):
        tokens = torch.tensor([[*encode_prompt(side.tokenizer, question), *answer.token_ids]])
        per_token = side.model(tokens).logits[0, -len(own) - 1 : -1].log_softmax(-1)
        logps.append(per_token[range(len(own)), answer.token_ids][own].sum().item())
    assert [logps_of(side, [question], [answer])[0] for side in (policy, reference)] == pytest.approx(logps, abs=1e-3)
    assert logps[0] - answer.logp > 1, "the answer's own log-probability is that of all its tokens"

    [whole] = completion_kls(policy, reference, [question], [answer.token_ids])
    row = SimpleNamespace(prompt=question)
    [kls] = token_kls(policy, reference, [row], [[answer]])  # type: ignore[list-item]
    assert kls == [kl for kl, is_own in zip(whole, own, strict=True) if is_own]


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"sample": {"max_thinking_tokens": 48}}, "sample.max_thinking_tokens"),
        ({"align": {"algorithm": "grpo", "max_steps": None, "max_thinking_tokens": 48}}, "align.max_thinking_tokens"),
        (
            {"compare": {"checks": [{"kind": "gsm8k", "path": "gsm8k.jsonl", "max_thinking_tokens": 48}]}},
            "compare.checks.max_thinking_tokens",
        ),
    ],
)
def test_a_budget_of_reasoning_is_refused_where_nothing_reasons(
    campaign: Callable[..., Any], tmp_path: Path, sections: dict[str, Any], key: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{key}: limits reasoning, and model\.thinking is off: leave it out"):
        campaign(tmp_path, **sections)
