"""A row that the chat template refuses is a bad row: `check` and the stages refuse or drop it alike, by one rule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sft.sample
import sft.train
from rlhf.align.ppo.stage import demonstrations
from rlhf.align.prompts import choose_prompts
from rlhf.compare.regressions import read_checks
from rlhf.config import CheckConfig
from trueup import runs
from trueup.check import check
from trueup.data.records import Dropped, Preference, write_rows
from trueup.errors import DataError, TrueupError
from trueup.models import loading
from trueup.training.pairs import encode_pairs, read_pairs

TEMPLATE = (
    "{% if 'tea' in messages[0]['content'] %}{{ raise_exception('No tea') }}{% endif %}{% for m in messages %}"
    "{{ m['role'] + ':' + ('Well: ' if m['role'] == 'assistant' and messages[0]['role'] == 'system' else '') }}"
    "{{ m['content'] | replace('milk', 'cream') }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{{ 'assistant:' if add_generation_prompt }}"
)
ODD = {
    4: ([{"role": "user", "content": "Is tea red?"}], "the chat template refuses this conversation"),
    9: ([{"role": "user", "content": "Is milk red?"}], "the chat template writes another text than the row's"),
    15: (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it red?"}],
        "the chat template asks for an answer with",
    ),
}
"""By its line: a prompt that the template refuses, rewrites, or answers with more than it asks with; and the error."""
KINDS = {f"bad row: {said}": 1 for _, said in ODD.values()}
ANSWER = {"role": "assistant", "content": "It is red."}


def prompts() -> list[list[dict[str, str]]]:
    """Thirty, of which three are odd."""
    return [ODD[line][0] if line in ODD else [{"role": "user", "content": f"Say {line}."}] for line in range(1, 31)]


@pytest.fixture
def made(campaign: Callable[..., Any], jsonl: Callable[..., Path], tmp_path: Path) -> Callable[..., Any]:
    """The tiny campaign with that template, over files with odd rows; `only` these lines of each."""

    def make(on_bad_rows: str, only: tuple[int, ...] = tuple(range(1, 31)), **sections: Any) -> Any:
        (tmp_path / "t.jinja").write_text(TEMPLATE)
        rows = [prompts()[line - 1] for line in only]
        loaded = campaign(
            tmp_path,
            model={"chat_template": "t.jinja"},
            split={"heldout_fraction": 0.2},
            sft={"data": [{"path": "odd.jsonl", "on_bad_rows": on_bad_rows}], "max_steps": 1},
            sample={"prompts": "asked.jsonl", "on_bad_rows": on_bad_rows, "num_candidates": 2},
            **sections,
        )
        jsonl(tmp_path / "odd.jsonl", [{"messages": [*row, ANSWER]} for row in rows])
        jsonl(tmp_path / "asked.jsonl", [{"prompt": row} for row in rows])
        pair = {"chosen": "Yes.", "rejected": "No."}
        jsonl(tmp_path / "labels.jsonl", [{"prompt": row, **pair} for row in rows])
        return loaded

    return make


def after_sft(loaded: Any, stage: str) -> Any:
    """The config of a stage, behind the base model in place of the SFT policy."""
    if runs.find_stage(loaded.run_dir, "sft") is None:
        policy = runs.begin(loaded.stages["sft"])
        loading.save(loading.load_base(loaded.config.model), policy.dir / "model")
        policy.finish()
    return loaded.stages[stage]


def left_out(folder: Path) -> list[tuple[str, Any]]:
    rows = [json.loads(line) for line in (folder / "left_out.jsonl").read_text().splitlines()]
    assert all(row["problem"] for row in rows)
    return [(row["where"], row["row"]) for row in rows]


def bad(counts: dict[str, int]) -> dict[str, int]:
    return {name.partition(" '")[0]: count for name, count in counts.items() if name.startswith("bad row: ")}


# ---- Demonstrations and prompts of files ------------------------------------------------------------------------


def test_demonstrations_that_the_template_refuses_are_dropped_where_that_is_asked(made: Any, tmp_path: Path) -> None:
    loaded = made("drop")
    problems, notes = check(loaded)
    assert problems == []
    (note,) = [note for note in notes if note.startswith("sft.data: ") and "can be encoded" in note]
    assert note.startswith(f"sft.data: {tmp_path}/odd.jsonl: 27 rows can be encoded, dropped: 1 bad row: ")
    assert all(kind.removeprefix("bad row: ") in note for kind in KINDS)
    folder = sft.train.run(loaded.stages["sft"])
    (source,) = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert (source["rows"], bad(source["dropped"])) == (27, KINDS)
    assert left_out(folder) == [
        (f"{tmp_path}/odd.jsonl:{line}", {"messages": [*prompt, ANSWER], "category": None})
        for line, (prompt, _) in ODD.items()
    ]


def test_prompts_that_the_template_refuses_are_dropped_where_that_is_asked(made: Any, tmp_path: Path) -> None:
    loaded = made("drop")
    _, notes = check(loaded)
    assert any(note.startswith(f"sample.prompts: {tmp_path}/asked.jsonl: 27 rows can be encoded") for note in notes)
    folder = sft.sample.run(after_sft(loaded, "sample"))
    (source,) = json.loads((folder / "manifest.json").read_text())["inputs"]
    assert (source["rows"], bad(source["dropped"])) == (27, KINDS)
    assert [where for where, _ in left_out(folder)] == [f"{tmp_path}/asked.jsonl:{line}" for line in ODD]
    assert len((folder / "candidates.jsonl").read_text().splitlines()) == 27


@pytest.mark.parametrize(("rule", "only"), [("refuse", tuple(range(1, 31))), ("drop", tuple(ODD))])
def test_they_are_an_error_that_names_them_all_where_nothing_is_dropped_or_nothing_would_be_left(
    made: Any, tmp_path: Path, rule: str, only: tuple[int, ...]
) -> None:
    loaded = made(rule, only)
    told = "\n".join(check(loaded)[0])
    with pytest.raises(TrueupError) as of_sft:
        sft.train.run(loaded.stages["sft"])
    with pytest.raises(TrueupError) as of_sample:
        sft.sample.run(after_sft(loaded, "sample"))
    for line in range(1, len(only) + 1):
        if only[line - 1] in ODD:
            said = ODD[only[line - 1]][1]
            for file, text in (("odd", told), ("asked", told), ("odd", of_sft), ("asked", of_sample)):
                found = text if isinstance(text, str) else str(text.value)
                where = f"{tmp_path}/{file}.jsonl:{line}: "
                # Of the template `check` tells once, whichever file shows it.
                assert (
                    f"{where}{said}" in found
                    or f"{where}message 1 (user): {said}" in found
                    or (found is told and file == "asked" and "asks for an answer" in said)
                ), (where, said, found)
    assert not (loaded.run_dir / "sft" / "left_out.jsonl").exists() or rule == "refuse"


def test_what_is_left_is_counted_against_what_the_stages_need(made: Any) -> None:
    problems, _ = check(made("drop", (*range(1, 10), 15)))
    (few,) = [problem for problem in problems if problem.startswith("sft.data: ")]
    assert " demonstrations to train on" in few and int(few.split()[1]) < 8


# ---- Online alignment -------------------------------------------------------------------------------------------

ONLINE = {"algorithm": "ppo", "rewards": {"rubric": 1.0}, "rollout_batch_size": 8, "eval_prompts": 2}
ONLINE |= {"max_new_tokens": 8, "prompts": "asked.jsonl"}


def opened(loaded: Any) -> tuple[Any, Any, Any]:
    config = after_sft(loaded, "align")
    return config, runs.begin(config), loading.load_base_tokenizer(config.model)


def test_prompts_of_an_alignment_that_the_template_refuses_are_refused_or_dropped(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "asked.jsonl"
    loaded = made("drop", align=ONLINE)
    told = [problem for problem in check(loaded)[0] if problem.startswith("align.prompts: ")]
    with pytest.raises(DataError) as caught:
        choose_prompts(*opened(loaded))
    for line, (_, said) in ODD.items():
        assert f"{path}:{line}: " in str(caught.value) and said in str(caught.value)
        assert f"{path}:{line}: " in "".join(told) or "asks for an answer" in said

    loaded = made("drop", align={**ONLINE, "on_bad_rows": "drop"})
    problems, notes = check(loaded)
    assert problems == [] and any(note.startswith(f"align.prompts: {path}: 27 rows can be encoded") for note in notes)
    config, stage, tokenizer = opened(loaded)
    chosen = choose_prompts(config, stage, tokenizer)
    (source,) = stage.inputs
    assert len(chosen.train) + 2 == source.rows and sum(source.dropped.values()) + source.rows == 30
    assert set(bad(source.dropped)) <= set(KINDS) and bad(source.dropped)
    assert {where for where, _ in left_out(stage.dir)} <= {f"{path}:{line}" for line in ODD}


def test_a_prompt_of_a_check_that_the_template_refuses_is_refused_by_file_and_line(
    made: Any, jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    """Whatever becomes of bad rows elsewhere: a benchmark without some of its prompts is another one."""
    path = tmp_path / "g.jsonl"
    checks = [{"kind": "gsm8k", "path": "g.jsonl"}]
    keys = {"on_bad_rows": "drop", "checks": checks, "rewards": {"rubric": 1.0, "gsm8k": 1.0}}
    loaded = made("drop", align={**ONLINE, **keys}, compare={"checks": [{**checks[0], "max_new_tokens": 8}]})
    rows = [{"question": f"How many is {n}{' tea' if n == 7 else ''}?", "answer": f"#### {n}"} for n in range(30)]
    jsonl(path, rows)
    said = f"{path}:8: the chat template refuses this conversation (user): No tea"
    problems, _ = check(loaded)
    (problem,) = problems
    assert f".checks: {said}" in problem
    with pytest.raises(DataError) as caught:
        choose_prompts(*opened(loaded))
    assert str(caught.value).startswith(said)
    with pytest.raises(DataError) as caught:
        read_checks([CheckConfig(kind="gsm8k", path=path)], 0, loading.load_base_tokenizer(loaded.config.model))
    assert str(caught.value).startswith(said)


def test_demonstrations_to_mix_in_are_dropped_alike(made: Any, tmp_path: Path) -> None:
    ptx = {"ptx_coef": 0.1, "ptx_data": ["odd.jsonl"]}
    loaded = made("drop", align={**ONLINE, **ptx, "on_bad_rows": "drop"})
    config, stage, _ = opened(loaded)
    demonstrations(config, stage, loading.load_base(config.model))
    (source,) = stage.inputs
    assert set(bad(source.dropped)) <= set(KINDS) and bad(source.dropped)
    assert source.rows + sum(source.dropped.values()) == 30
    assert [note for note in check(loaded)[1] if note.startswith("align.ptx_data: ") and "27 rows can be" in note]


# ---- Imported labels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["refuse", "drop"])
def test_imported_labels_are_refused_or_dropped_as_the_label_stage_says(made: Any, tmp_path: Path, rule: str) -> None:
    loaded = made("drop", label={"source": "import", "path": "labels.jsonl", "on_bad_rows": rule})
    problems, notes = check(loaded)
    told = [line for line in (problems if rule == "refuse" else notes) if line.startswith("label.path: ")]
    assert any("No tea" in line if rule == "refuse" else "27 rows can be encoded" in line for line in told)
    assert rule == "refuse" or problems == []

    label = runs.begin(loaded.stages["label"])
    keys = {"split": "train", "label_id": "1", "source": "import", "annotator": "a", "created_utc": ""}
    answers = {side: [{"role": "assistant", "content": text}] for side, text in (("chosen", "A"), ("rejected", "B"))}
    pairs = [
        Preference(**keys, **answers, prompt=prompt, prompt_id=str(n)) for n, prompt in enumerate(prompts(), start=1)
    ]
    write_rows(label.dir / "preferences.jsonl", pairs)
    write_rows(label.dir / "ties.jsonl", [])
    label.finish()
    found = read_pairs(runs.open_stage(loaded.run_dir, "label"), loaded.stages["reward"])
    stage = runs.begin(loaded.stages["sft"])
    tokenizer, dropped = loading.load_base_tokenizer(loaded.config.model), Dropped()
    rows = [*found.train, *found.heldout]
    if rule == "refuse":
        with pytest.raises(DataError, match="No tea"):
            encode_pairs(rows, tokenizer, 96, dropped, stage, found.on_bad_rows)
        return
    kept, encoded = encode_pairs(rows, tokenizer, 96, dropped, stage, found.on_bad_rows)
    assert len(kept) == len(encoded) == 27 and bad(dict(dropped.counts)) == KINDS
    assert sorted(row["prompt_id"] for _, row in left_out(stage.dir)) == sorted(map(str, ODD))
    odd = [pair for pair in rows if int(pair.prompt_id) in ODD]
    assert encode_pairs(odd, tokenizer, 96, Dropped(), None, found.on_bad_rows) == ([], []), "a part may be all odd"
