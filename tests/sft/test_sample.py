"""The real sample stage over a tiny policy: files, provenance, the split, and answers that an interruption keeps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.sample
from trueup import runs
from trueup.data.containers.appended import append_rows
from trueup.data.records import CandidateSet, Message, read_rows, shuffled
from trueup.data.split import is_heldout
from trueup.errors import DataError
from trueup.models import loading
from trueup.models.sampling import Decoding, sample, sample_saved
from trueup.verify import verify


@pytest.fixture
def sampled(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    """The config of a sample stage whose parent is there: the base model, as if it had been trained."""

    def make(**keys: Any) -> Any:
        made = campaign(tmp_path, sample=keys)
        if runs.find_stage(made.run_dir, "sft") is None:
            stage = runs.begin(made.stages["sft"])
            loading.save(loading.load_base(made.config.model), stage.dir / "model")
            stage.finish()
        return made.stages["sample"]

    return make


def rows(directory: Path) -> list[CandidateSet]:
    return read_rows(directory / "candidates.jsonl", CandidateSet)


def test_every_prompt_gets_its_k_answers_with_where_they_come_from(sampled: Callable[..., Any]) -> None:
    config = sampled(temperature=0.9, top_k=50, seed=5)
    directory = sft.sample.run(config)
    names = {path.name for path in directory.iterdir()}
    assert names == {"candidates.jsonl", "config.yaml", "data.html", "data.json", "manifest.json", "report.json"}
    shown = json.loads((directory / "data.json").read_text())
    assert (shown["use"], shown["rows"], shown["split"]["heldout"]) == (
        "prompts",
        16,
        sum(is_heldout(row.prompt, config.split) for row in rows(directory)),
    )
    found = rows(directory)
    assert [row.prompt[0].content for row in found] == [json.loads(line)["prompt"] for line in config.prompts.open()]
    assert {len(row.candidates) for row in found} == {3} and {row.category for row in found} == {"conversation"}
    assert {row.split for row in found} == {"train", "heldout"}
    assert all((row.split == "heldout") == is_heldout(row.prompt, config.split) for row in found)
    parent = runs.open_stage(config.run_dir, "sft")
    decoding: dict[str, Any] = {"max_new_tokens": 8, "temperature": 0.9, "top_k": 50, "top_p": 1.0, "seed": 5}
    told = {"policy": "sft", "policy_sha256": parent.sha256, "dtype": "float32", **decoding}
    assert all(row.sampler == told for row in found)
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["parents"] == [{"stage": "sft", "manifest_sha256": parent.sha256}]
    assert (manifest["inputs"][0]["rows"], manifest["device"]) == (16, "cpu") and manifest["tokens_per_s"] > 0
    assert verify(config.run_dir).problems == []

    # The answers are those of the saved policy, asked for these prompts with this seed.
    policy = loading.load_policy(parent.dir / "model", config.model)
    again = sample(policy, [row.prompt for row in found], Decoding(**decoding), 3, 64)
    assert [row.candidates for row in found] == again

    # What the report says of them, counted again
    report = json.loads((directory / "report.json").read_text())
    candidates = [candidate for row in found for candidate in row.candidates]
    assert report["eos_rate"] == pytest.approx(len([c for c in candidates if c.finished]) / 48)
    assert (report["prompts"], report["heldout"]) == (16, len([row for row in found if row.split == "heldout"]))
    assert manifest["verdict"]["findings"][0]["code"] == "rarely_stops", "a model that was never trained"


def test_an_interrupted_stage_keeps_what_is_answered_and_ends_with_the_same_rows(
    sampled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = sampled(batch_size=6)
    whole = rows(sft.sample.run(config))
    directory = runs.stage_dir(config.run_dir, "sample")
    (directory / "manifest.json").unlink()
    asked: list[int] = []

    def killed_after_three_batches(policy: Any, model: Any, prompts: list[list[Message]], *rest: Any) -> Any:
        asked.append(len(prompts))
        for number, batch in enumerate(sample_saved(policy, model, prompts, *rest)):
            if len(asked) == 1 and number == 3:
                raise KeyboardInterrupt
            # Text that breaks lines for str.splitlines, but not in JSON Lines
            yield [(i, [c.model_copy(update={"text": c.text + "\u2028\x85x"}) for c in cs]) for i, cs in batch]

    monkeypatch.setattr(sft.sample, "sample_saved", killed_after_three_batches)
    with pytest.raises(KeyboardInterrupt):
        sft.sample.run(config)
    with (directory / "answered.partial").open("a") as file:
        file.write('{"prompt_id": "cut in the mid')
    capsys.readouterr()
    sft.sample.run(config)
    assert "resume       6 prompts are answered already\n" in capsys.readouterr().out
    assert asked == [16, 10]
    found = rows(directory)
    assert [[c.token_ids for c in row.candidates] for row in found] == [
        [c.token_ids for c in row.candidates] for row in whole
    ]
    assert all(candidate.text.endswith("\u2028\x85x") for row in found for candidate in row.candidates)
    assert not (directory / "answered.partial").exists()


def test_answers_for_people_come_in_a_random_order_and_are_the_same(
    campaign: Callable[..., Any], sampled: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sampled(batch_size=6)
    alike = rows(sft.sample.run(config))
    for_people = campaign(config.run_dir.parent, sample={"batch_size": 6}, label={"source": "human"}).stages["sample"]
    assert for_people.sha256() == config.sha256(), "the order changes no answer, so no result is stale"
    order: list[str] = []

    def append(path: Path, answered: list[CandidateSet]) -> None:
        order.extend(row.prompt_id for row in answered)
        append_rows(path, answered)

    monkeypatch.setattr(sft.sample, "append_rows", append)
    again = rows(sft.sample.run(for_people))
    texts = [[[c.token_ids for c in row.candidates] for row in some] for some in (again, alike)]
    assert texts[0] == texts[1]
    by_length = sorted(alike, key=lambda row: -len(row.prompt[0].content))
    assert order == [row.prompt_id for row in shuffled(alike, config.seed)]
    assert order not in ([row.prompt_id for row in alike], [row.prompt_id for row in by_length])


def test_only_what_is_held_out_is_sampled_where_that_is_asked_for(sampled: Callable[..., Any]) -> None:
    directory = sft.sample.run(sampled(only="heldout"))
    found = rows(directory)
    assert 2 <= len(found) < 16 and {row.split for row in found} == {"heldout"}
    dropped = json.loads((directory / "manifest.json").read_text())["inputs"][0]["dropped"]
    assert dropped == {"not heldout": 16 - len(found)}


def test_so_many_prompts_are_drawn_with_the_seed_and_the_rest_is_counted(sampled: Callable[..., Any]) -> None:
    first = [row.prompt_id for row in rows(sft.sample.run(sampled(max_prompts=5)))]
    directory = sft.sample.run(sampled(max_prompts=5, seed=1))
    second = [row.prompt_id for row in rows(directory)]
    assert len(set(first)) == len(set(second)) == 5 and set(first) != set(second)
    assert json.loads((directory / "manifest.json").read_text())["inputs"][0]["dropped"] == {"over max_prompts": 11}


def test_prompts_of_which_none_is_left_are_an_error_that_counts_why(
    sampled: Callable[..., Any], jsonl: Callable[..., Path]
) -> None:
    config = sampled(only="heldout")
    jsonl(config.prompts, [{"prompt": text} for text in ("Say red.", "Say blue.")])
    with pytest.raises(DataError, match=r"prompts\.jsonl: no prompt is left to answer \(2 not heldout\)$"):
        sft.sample.run(config.model_copy(update={"split": config.split.model_copy(update={"heldout_fraction": 0.0})}))


def test_prompts_that_the_template_refuses_are_all_named_before_any_is_answered(
    sampled: Callable[..., Any], tmp_path: Path, jsonl: Callable[..., Path]
) -> None:
    config = sampled()
    template = runs.stage_dir(config.run_dir, "sft") / "model" / "chat_template.jinja"
    template.write_text(
        "{% if 'tea' in messages[0]['content'] %}{{ raise_exception('No tea') }}{% endif %}" + template.read_text()
    )
    jsonl(
        tmp_path / "prompts.jsonl",
        [{"prompt": f"Question {i}: {'tea' if i in (4, 9) else 'milk'}?"} for i in range(12)],
    )
    with pytest.raises(DataError) as caught:
        sft.sample.run(config)
    where = f"{tmp_path}/prompts.jsonl"
    assert str(caught.value).startswith(f"2 rows cannot be encoded\n  {where}:5: the chat template refuses this")
    assert str(caught.value).endswith("(and in 10)")
    assert not (runs.stage_dir(config.run_dir, "sample") / "answered.partial").exists()
