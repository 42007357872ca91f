"""A campaign with a model that reasons before it answers: from samples to the verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl

from trueup import runs, stages
from trueup.data.records import Preference, read_jsonl, read_rows
from trueup.errors import ConfigError
from trueup.models.loading import read_tokenizer

OPENS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'].split('</think>')[-1]"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}"
    "{% endif %}"
)
"""As R1's: the prompt opens the block, and an answered turn is written without it."""


@pytest.fixture
def thinker(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    folder = tmp_path / "thinker"
    shutil.copytree(bases("chatml"), folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(OPENS, encoding="utf-8")
    return folder


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
    sample = {"max_new_tokens": 6, "max_thinking_tokens": 24}
    made = campaign(tmp_path, model=model, sft="none", sample=sample, align={"max_length": 160})
    trained_ids = completions_in_the_loss(monkeypatch)
    for stage in ("sft", "sample", "label", "reward", "align", "compare"):
        stages.load_object(made.stages[stage].run)(made.stages[stage])

    # Sampled: each answer has its reasoning, and all of its own budget.
    run_dir = made.run_dir
    tokenizer = read_tokenizer(runs.stage_dir(run_dir, "sft") / "model", made.stages["sft"].model)
    rows = [row for _, row in read_jsonl(runs.stage_dir(run_dir, "sample") / "candidates.jsonl")]
    answers = [answer for row in rows for answer in row["candidates"]]
    assert all(row["sampler"]["max_thinking_tokens"] == 24 for row in rows)
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


def test_an_online_algorithm_refuses_a_model_that_reasons_before_anything_runs(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    for algorithm in ("ppo", "grpo", "rloo"):
        align = {"algorithm": algorithm, "max_steps": None, "lora": {"r": 4}}
        with pytest.raises(
            ConfigError, match=rf"model\.thinking: {algorithm} draws answers .* set align\.algorithm: dpo"
        ):
            campaign(tmp_path, model={"thinking": True}, align=align)
