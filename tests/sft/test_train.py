"""The real SFT stage on a tiny base model: what it leaves, that it learns to stop, that it goes on where it stopped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import sft.train
from rlhf.compare.inputs import prove_disjoint
from sft.tokens import TrainingRows
from trueup import runs
from trueup.data.formats import read_demonstrations
from trueup.data.records import CandidateSet, Dropped, Message, prompt_id
from trueup.data.split import is_heldout, opening_id
from trueup.errors import DataError, RunError
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.sampling import Decoding, sample
from trueup.models.templates.ends import turn_ends
from trueup.training import loop
from trueup.verify import verify

Jsonl = Callable[..., Path]
FILES = {
    "config.yaml", "manifest.json", "metrics.jsonl", "report.json", "samples.jsonl",
    "heldout.jsonl", "trained_prompts.json", "trained_questions.jsonl", "data.json", "data.html",
    "model/chat_template.jinja", "model/config.json", "model/generation_config.json", "model/model.safetensors",
    "model/tokenizer.json", "model/tokenizer_config.json",
}  # fmt: skip
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def losses(directory: Path) -> dict[int, float]:
    """Training loss by step; a step that stands twice fails the test."""
    rows = [row for row in loop.read_metrics(directory / "metrics.jsonl") if "loss" in row]
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): row["loss"] for row in rows}


def eos_rate(policy: loading.Loaded, prompts: list[list[Message]]) -> float:
    policy.model.eval()
    answers = sample(policy, prompts, Decoding(40, seed=1), num_samples=16, batch_size=64)
    return sum(candidate.finished for row in answers for candidate in row) / (16 * len(prompts))


@pytest.mark.parametrize(
    ("kind", "model", "keys"),
    [
        ("plain", {"chat_template": "plain"}, {"full_finetuning": True, "learning_rate": 5e-3}),
        ("plain", {"chat_template": "chatml", "new_tokens": True}, {"learning_rate": 3e-2, "lora": {"r": 16}}),
        ("llama", {"chat_template": "auto"}, {"learning_rate": 1e-2, "lora": {"r": 16, "last_layers": 2}}),
    ],
    ids=["plain, all weights", "chatml with new tokens, adapters", "llama, adapters"],
)
def test_a_base_model_learns_to_answer_and_to_stop_by_itself(
    kind: str,
    model: dict[str, Any],
    keys: dict[str, Any],
    bases: Callable[[str], Path],
    campaign: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = campaign(
        tmp_path, model={"name": str(bases(kind)), **model}, sft={"max_steps": 250, "max_length": 128, **keys}
    )
    config = made.stages["sft"]
    seen: dict[str, Any] = {}
    build, save = sft.train.build_trainer, loading.save

    def spy_build(config: Any, stage: Any, base: loading.Loaded, rows: TrainingRows, heldout: TrainingRows) -> Any:
        seen["rows"] = [base.tokenizer.decode(row.input_ids) for row in rows]
        return build(config, stage, base, rows, heldout)

    def spy_save(loaded: loading.Loaded, directory: Path) -> None:
        seen["logits"] = logits(loaded)
        save(loaded, directory)

    def logits(loaded: loading.Loaded) -> torch.Tensor:
        with torch.inference_mode():
            ids = encode_prompt(loaded.tokenizer, [Message(role="user", content="Say red.")])
            return loaded.model(torch.tensor([ids])).logits

    monkeypatch.setattr(sft.train, "build_trainer", spy_build)
    monkeypatch.setattr(loading, "save", spy_save)
    directory = sft.train.run(config)

    # What it leaves
    expected = FILES if config.full_finetuning else FILES | ADAPTER
    assert files(directory) == expected
    manifest = json.loads((directory / "manifest.json").read_text())
    report = json.loads((directory / "report.json").read_text())
    assert {entry["path"] for entry in manifest["outputs"]} == expected - {"manifest.json"}
    assert (manifest["stage"], manifest["device"], manifest["dtype"], manifest["steps"]) == (
        "sft",
        "cpu",
        "float32",
        250,
    )
    assert manifest["tokens_per_s"] > 0 and manifest["trained_parameters"] > 0 and manifest["parents"] == []
    tokenizer = loading.read_tokenizer(directory / "model", config.model)
    assert f"end of turn {tokenizer.eos_token!r} (" in manifest["chat_template"]
    for name in ("config.json", "generation_config.json"):
        ends = json.loads((directory / "model" / name).read_text())["eos_token_id"]
        assert (ends if isinstance(ends, list) else [ends]) == turn_ends(tokenizer), "other engines stop there, too"
    assert manifest["inputs"][0]["rows"] == 16
    assert verify(made.run_dir).problems == []
    assert set(losses(directory)) == set(range(1, 251))

    # Nothing held out was trained on
    demonstrations = read_demonstrations(tmp_path / "demonstrations.jsonl", Dropped())
    heldout = [row for row in demonstrations if is_heldout(row.messages[:1], config.split)]
    assert len(heldout) >= 2 and len(seen["rows"]) == 16 - len(heldout)
    assert not [row for row in heldout for text in seen["rows"] if row.messages[0].content in text]

    # What was saved is what was trained
    policy = loading.load_policy(directory / "model", ModelConfig(device="cpu"))
    torch.testing.assert_close(logits(policy), seen["logits"], rtol=0, atol=0)

    # So is its adapter, over the base model: several policies can share one base in memory
    if not config.full_finetuning:
        together = loading.SavedPolicy(None, directory / "adapter").load(config.model)
        torch.testing.assert_close(logits(together), seen["logits"], rtol=0, atol=1e-4)

    # It learnt: held-out loss fell, and a model that hardly ever stopped now does, on prompts that it never saw
    assert report["heldout_loss"]["after"] < report["heldout_loss"]["before"] - 0.5
    assert report["trained_eos"] == 16 - len(heldout)
    prompts = [row.messages[:-1] for row in heldout]
    before = eos_rate(loading.load_base(config.model), prompts)
    assert before < 0.3 and eos_rate(policy, prompts) > 0.6
    assert report["eos_rate"] >= 0.75 and manifest["verdict"] == {"status": "pass", "findings": []}
    rows = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert rows and all(set(row) == {"prompt", "demonstration", "completion", "finished"} for row in rows)


def test_no_part_of_a_held_out_dialogue_is_trained_on_and_a_comparison_would_notice(
    campaign: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    def dialogue(i: int, turns: int) -> list[dict[str, str]]:
        return [
            {"role": ("user", "assistant")[k % 2], "content": f"{'Say' if k == 0 else 'So'} {i}."} for k in range(turns)
        ]

    made = campaign(tmp_path, sft={"max_steps": 1, "max_length": 128})
    jsonl(tmp_path / "demonstrations.jsonl", [{"messages": dialogue(i, 2 + 2 * (i % 3))} for i in range(40)])
    config = made.stages["sft"]
    finished = runs.open_stage(made.run_dir, sft.train.run(config).name)
    asked = [[Message(**turn) for turn in dialogue(i, turns)] for i in range(40) for turns in (1, 3, 5, 7)]
    heldout = [prompt for prompt in asked if is_heldout(prompt, config.split)]
    assert len(heldout) >= 20 and not {opening_id(prompt) for prompt in heldout} & finished.trained_prompts
    trained = [prompt for prompt in asked if not is_heldout(prompt, config.split)]
    assert {opening_id(prompt) for prompt in trained} == finished.trained_prompts
    keys: dict[str, Any] = {"split": "heldout", "candidates": [], "sampler": {}}
    rows = [CandidateSet(prompt_id=prompt_id(prompt), prompt=prompt, **keys) for prompt in heldout]
    prove_disjoint(rows, [finished])
    continued = trained[-1]
    with pytest.raises(RunError, match="was trained on a dialogue that begins like it"):
        prove_disjoint([CandidateSet(prompt_id=prompt_id(continued), prompt=continued, **keys)], [finished])


@pytest.mark.parametrize("kind", ["plain", "untied"])
def test_new_tokens_are_trained_where_they_have_weights_and_no_other_token_is(
    kind: str, bases: Callable[[str], Path], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    model = {"name": str(bases(kind)), "chat_template": "chatml", "new_tokens": True}
    config = campaign(tmp_path, model=model, sft={"max_steps": 3}).stages["sft"]
    directory = sft.train.run(config)
    torch.manual_seed(1)
    before = loading.load_base(config.model).model
    after = loading.load_policy(directory / "model", ModelConfig(device="cpu")).model
    for layer in ("get_input_embeddings", "get_output_embeddings"):
        old, new = (getattr(made, layer)().weight for made in (before, after))
        torch.testing.assert_close(new[:300], old[:300], rtol=0, atol=0)
        assert (new[300:302] - old[300:302]).abs().amax(dim=1).min() > 1e-3
    tied = after.get_input_embeddings().weight.data_ptr() == after.get_output_embeddings().weight.data_ptr()
    assert tied == (kind == "plain")


# ---- Interrupted ------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], Any]) -> None:
    real = loop.Watch.on_log

    def on_log(self: Any, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any) -> None:
        real(self, args, state, control, logs, **rest)
        if state.global_step == step:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Watch, "on_log", on_log)
        run()


@pytest.fixture
def stage(campaign: Callable[..., Any], tmp_path: Path) -> Callable[[str], Any]:
    def make(name: str, **keys: Any) -> Any:
        return campaign(tmp_path, run_dir=str(tmp_path / name), sft={"max_steps": 6, "save_steps": 2, **keys}).stages[
            "sft"
        ]

    return make


def test_an_interrupted_stage_ends_as_if_it_had_not_been_interrupted(
    stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = sft.train.run(stage("whole"))
    config = stage("killed")
    killed_at(5, monkeypatch, lambda: sft.train.run(config))
    directory = runs.stage_dir(config.run_dir, "sft")
    assert (directory / "checkpoint-4").exists() and not (directory / "manifest.json").exists()
    capsys.readouterr()
    sft.train.run(config)
    assert "resume       from checkpoint-4\n" in capsys.readouterr().out
    assert losses(directory) == pytest.approx(losses(whole), rel=1e-4)
    assert files(directory) == files(whole) == FILES | ADAPTER
    before, after = (json.loads((path / "report.json").read_text()) for path in (directory, whole))
    assert before["heldout_loss"] == pytest.approx(after["heldout_loss"], rel=1e-4)
    assert json.loads((directory / "manifest.json").read_text())["steps"] == 6


def test_a_stage_that_was_killed_while_it_wrote_a_checkpoint_or_after_its_last_step_ends_too(
    stage: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = stage("killed")
    killed_at(3, monkeypatch, lambda: sft.train.run(config))
    directory = runs.stage_dir(config.run_dir, "sft")
    (directory / "checkpoint-2/trainer_state.json").unlink()  # written last
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(sft.train, "answer_heldout", lambda *_: (_ for _ in ()).throw(Killed))
        sft.train.run(config)
    assert (directory / "checkpoint-6").exists()
    sft.train.run(config)
    assert set(losses(directory)) == set(range(1, 7)) and files(directory) == FILES | ADAPTER


# ---- Data -------------------------------------------------------------------------------------------------------


def test_rows_that_are_too_long_are_dropped_and_counted_and_never_cut(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    config = stage("run", max_steps=1, data=["demonstrations.jsonl", {"path": "more.jsonl", "max_rows": 2}])
    config = config.model_copy(update={"split": config.split.model_copy(update={"heldout_fraction": 0.0})})
    long = {"messages": [{"role": "user", "content": "Sing."}, {"role": "assistant", "content": "la " * 200}]}
    short = [
        {"messages": [{"role": "user", "content": f"Hum {i}."}, {"role": "assistant", "content": "Hm."}]}
        for i in range(5)
    ]
    jsonl(tmp_path / "demonstrations.jsonl", [long, *short[:1]])
    jsonl(tmp_path / "more.jsonl", short[1:])
    directory = sft.train.run(config)
    report = json.loads((directory / "report.json").read_text())
    assert report["rows"]["dropped"] == {"longer than max_length": 1}
    first, second = json.loads((directory / "manifest.json").read_text())["inputs"]
    assert (first["rows"], first["dropped"]) == (1, {"longer than max_length": 1})
    assert (second["rows"], second["dropped"]) == (2, {"over max_rows": 2})


@pytest.mark.parametrize("too_long", [0, 1, 2], ids=["the first answer", "one within", "the last answer"])
@pytest.mark.parametrize("heldout", [0.0, 0.7])
def test_a_dialogue_any_turn_of_which_is_too_long_is_left_out_whole_whatever_the_template_makes_of_it(
    stage: Callable[..., Any],
    jsonl: Jsonl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    too_long: int,
    heldout: float,
) -> None:
    """STRICT makes a training row of each turn behind one that reasons, and some of those rows would fit."""

    def dialogue(n: int, long: bool) -> dict[str, Any]:
        answers = [f"<think>{'la ' * (90 if long and i == too_long else 1)}</think>\nIt is {n}." for i in range(3)]
        turns = [(f"Say {n}.{i}", answer) for i, answer in enumerate(answers)]
        return {
            "messages": [
                {"role": role, "content": text} for turn in turns for role, text in zip(ROLES, turn, strict=True)
            ]
        }

    jsonl(tmp_path / "data.jsonl", [dialogue(n, long=n % 5 == 2) for n in range(20)])
    config = with_data(stage, tmp_path, STRICT, heldout, max_length=128)
    directory, texts = trained_texts(monkeypatch, config)
    left = [n for n in range(20) if n % 5 == 2]
    assert texts and not any(f"It is {n}." in text for n in left for text in texts)
    assert all(text.count("It is") == 1 for text in texts), "a row for each turn"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["inputs"][0]["rows"], manifest["inputs"][0]["dropped"]) == (16, {"longer than max_length": 4})
    assert [one["message"] for one in manifest["verdict"]["findings"] if one["code"] == "too_long"] == [
        "4 of 20 demonstrations are longer than sft.max_length, 128 tokens, and are left out whole: "
        f"{tmp_path}/data.jsonl:3 (and in 8, 13, 18)"
    ]
    asked = [
        json.loads(line)["prompt"][0]["content"] for line in (directory / "samples.jsonl").read_text().splitlines()
    ]
    assert asked and not {text.partition(".")[0] for text in asked} & {f"Say {n}" for n in left}


def test_only_prompts_that_leave_room_for_an_answer_in_the_models_context_are_answered(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    """The model reads 256 tokens. A demonstration that fits may have a prompt that leaves no room for 64 more."""

    def rows(long: list[int]) -> list[dict[str, str]]:
        return [
            {"instruction": f"{'so ' * (70 if n in long else 1)}say {n}.", "output": f"It is {n}."} for n in range(20)
        ]

    jsonl(tmp_path / "data.jsonl", rows([1, 2, 3, 4, 5, 6, 7]))
    directory = sft.train.run(with_data(stage, tmp_path, STRICT, heldout=0.5, max_length=256))
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert samples and all(len(row["prompt"][0]["content"]) < 30 for row in samples)

    jsonl(tmp_path / "data.jsonl", rows(list(range(20))))
    directory = sft.train.run(with_data(stage, tmp_path, STRICT, heldout=0.5, max_length=256))
    assert json.loads((directory / "report.json").read_text())["eos_rate"] is None
    findings = json.loads((directory / "manifest.json").read_text())["verdict"]["findings"]
    (said,) = [one["message"] for one in findings if one["code"] == "not_answered"]
    assert said.startswith("no prompt leaves room for 64 new tokens in the model's context of 256")


def test_what_is_answered_is_the_prompt_of_a_turn_that_is_to_be_imitated(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    turns: list[tuple[str, str, Any]] = [("user", "Say NN.", {}), ("assistant", "It is NN.", {}), ("user", "And?", {})]
    turns.append(("assistant", "Not to be imitated.", {"train": False}))
    rows = [
        {"messages": [{"role": role, "content": text.replace("NN", str(n)), **more} for role, text, more in turns]}
        for n in range(20)
    ]
    jsonl(tmp_path / "data.jsonl", rows)
    directory = sft.train.run(with_data(stage, tmp_path, STRICT, heldout=0.5))
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert samples and all(len(row["prompt"]) == 1 and row["demonstration"].startswith("It is") for row in samples)


def test_held_out_rows_that_are_too_long_are_neither_evaluated_nor_answered(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"It is {i}."} for i in range(20)]
    long = [{"instruction": f"Read {i}: {'la ' * 2000}", "output": f"It was {i}."} for i in range(60)]
    jsonl(tmp_path / "data.jsonl", [*rows, *long])
    directory = sft.train.run(with_data(stage, tmp_path, STRICT, heldout=0.5))
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert samples and all(row["prompt"][0]["content"].startswith("Say ") for row in samples)
    assert json.loads((directory / "report.json").read_text())["heldout_loss"]["rows"] == len(samples)


def test_data_of_which_nothing_is_left_is_an_error_that_says_why(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"left to train on \(12 longer than sft\.max_length, 8 tokens\); give"):
        sft.train.run(stage("run", max_length=8))
    heldout = [{"messages": [{"role": "user", "content": "Say plum."}, {"role": "assistant", "content": "Plum."}]}]
    config = stage("run").model_copy(
        update={"split": stage("run").split.model_copy(update={"heldout_fraction": 0.999})}
    )
    jsonl(tmp_path / "demonstrations.jsonl", heldout)
    with pytest.raises(DataError, match=r"left to train on \(1 held out \(split\.heldout_fraction: 0\.999\)\); give"):
        sft.train.run(config)


def test_a_campaign_may_hold_nothing_out(campaign: Callable[..., Any], tmp_path: Path) -> None:
    directory = sft.train.run(campaign(tmp_path, split={"heldout_fraction": 0.0}, sft={"max_steps": 1}).stages["sft"])
    assert json.loads((directory / "report.json").read_text())["heldout_loss"] == {
        "before": None,
        "after": None,
        "rows": 0,
    }


ROLES = ("user", "assistant")
STRICT = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% set text = m['content'].split('</think>')[-1] | trim %}"
    "{{ m['role'] + ':' + text + (eos_token if m['role'] == 'assistant' else '') }}{% endfor %}"
    "{{ 'assistant:' if add_generation_prompt }}"
)


def trained_texts(monkeypatch: pytest.MonkeyPatch, config: Any) -> tuple[Path, list[str]]:
    """What the stage leaves, and the text of the tokens with loss in every training row, spaces and ends shown."""
    seen: list[str] = []
    build = sft.train.build_trainer

    def spy(config: Any, stage: Any, base: loading.Loaded, rows: TrainingRows, heldout: TrainingRows) -> Any:
        seen.extend(base.tokenizer.decode([label for label in row.labels if label >= 0]) for row in rows)
        return build(config, stage, base, rows, heldout)

    monkeypatch.setattr(sft.train, "build_trainer", spy)
    return sft.train.run(config), seen


def with_data(stage: Callable[..., Any], tmp_path: Path, template: str, heldout: float = 0.0, **keys: Any) -> Any:
    (tmp_path / "t.jinja").write_text(template)
    config = stage("run", max_steps=1, data=["data.jsonl"], **keys)
    split = config.split.model_copy(update={"heldout_fraction": heldout})
    model = config.model.model_copy(update={"chat_template": str(tmp_path / "t.jinja")})
    return config.model_copy(update={"split": split, "model": model})


def test_answers_are_trained_as_they_stand_and_what_the_template_does_to_the_others_is_said(
    stage: Callable[..., Any],
    jsonl: Jsonl,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Indented code, and a dialogue whose history the template writes without its reasoning."""
    code = json.loads(Path("tests/data/cases/rows/d_indented_code.jsonl").read_text().splitlines()[0])
    answers = ["<think>Red.</think>\nRed ", "Yes.", "No.\n"]
    turns = [
        {"role": role, "content": text} for one in answers for role, text in (("user", "Why?"), ("assistant", one))
    ]
    jsonl(tmp_path / "data.jsonl", [code, {"messages": turns}])
    directory, texts = trained_texts(monkeypatch, with_data(stage, tmp_path, STRICT))
    end = "<|endoftext|>"
    assert texts == [f"    return a + b\n{end}", f"{answers[0]}{end}", f"Yes.{end}No.\n{end}"]
    manifest = json.loads((directory / "manifest.json").read_text())
    said = [finding["message"] for finding in manifest["verdict"]["findings"] if finding["code"] == "texts_in_tokens"]
    assert any("1 of 2 demonstrations are trained turn by turn" in text for text in said)
    assert any("1 of 2 demonstrations are prompted without white space around a text" in text for text in said)
    assert any("1 of 2 demonstrations are prompted without the reasoning of earlier answers" in text for text in said)
    assert all(text in capsys.readouterr().out for text in said[:1])
    assert json.loads((directory / "report.json").read_text())["trained_eos"] == 4


@pytest.mark.parametrize("heldout", [0.0001, 0.5, 0.9])
def test_every_row_that_the_template_refuses_is_named_before_anything_is_trained(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path, heldout: float
) -> None:
    """Held out or not: the file is refused as a whole."""
    rows = [[{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f"{i}"}] for i in range(40)]
    for i in (3, 17, 30):
        rows[i].insert(0, {"role": "system", "content": "Be brief."})
    jsonl(tmp_path / "data.jsonl", [{"messages": row} for row in rows])
    with pytest.raises(DataError) as caught:
        sft.train.run(with_data(stage, tmp_path, STRICT, heldout))
    first, *others = sorted(re.findall(r"\b(?:4|18|31)\b", str(caught.value)))
    assert str(caught.value).startswith(f"3 rows cannot be encoded\n  {tmp_path}/data.jsonl:")
    assert {first, *others} == {"4", "18", "31"} and "System role not supported" in str(caught.value)


def test_the_held_out_rows_whose_loss_is_measured_are_of_every_category(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path
) -> None:
    rows = [
        {"instruction": f"Say {k}{i}.", "output": f"It is {k}{i}.", "category": k}
        for k in "abcdefgh"
        for i in range(12)
    ]
    jsonl(tmp_path / "data.jsonl", rows)
    directory = sft.train.run(with_data(stage, tmp_path, STRICT, heldout=0.6))
    tokenizer = loading.load_policy(directory / "model", ModelConfig(device="cpu")).tokenizer
    heldout = [json.loads(line) for line in (directory / "heldout.jsonl").read_text().splitlines()]
    kinds = [re.findall(r"It is (\w)", tokenizer.decode(row["input_ids"]))[0] for row in heldout]
    assert len(kinds) == 16 and set(kinds) == set("abcdefgh")


def test_a_collator_that_changes_a_label_stops_the_stage_though_a_row_was_too_long(
    stage: Callable[..., Any], jsonl: Jsonl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = {"instruction": "Sing.", "output": "la " * 200}
    jsonl(tmp_path / "data.jsonl", [long, *({"instruction": f"Say {i}.", "output": f"{i}"} for i in range(9))])
    build = sft.train.build_trainer

    def damaged(*arguments: Any) -> Any:
        trainer = build(*arguments)
        collate = trainer.data_collator

        def collator(rows: Any) -> Any:
            batch = collate(rows)
            batch["labels"][batch["labels"] == trainer.processing_class.eos_token_id] = -100
            return batch

        trainer.data_collator = collator
        return trainer

    monkeypatch.setattr(sft.train, "build_trainer", damaged)
    with pytest.raises(AssertionError, match="the collator changed the labels of a training row"):
        sft.train.run(with_data(stage, tmp_path, STRICT))
