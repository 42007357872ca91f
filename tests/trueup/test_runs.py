"""The run directory: when a stage is finished, what may go on, who may write, and what `verify` finds."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from trueup import runs
from trueup.commandline.running import locked
from trueup.config import StageConfig
from trueup.console import say
from trueup.data.records import Dropped
from trueup.errors import RunError
from trueup.files import sha256_file
from trueup.verify import verify

KEYS = (
    "stage status started_utc duration_s device dtype seed git_commit versions config_sha256 parents inputs outputs "
    "verdict"
).split()


class First(StageConfig):
    stage: ClassVar[str] = "sft"
    run: ClassVar[str] = "nowhere:run"
    data: Path | None = None
    rate: float = 1.0

    def input_paths(self) -> list[Path]:
        return [self.data] if self.data else []


class Second(StageConfig):
    stage: ClassVar[str] = "sample"
    run: ClassVar[str] = "nowhere:run"

    def parents(self) -> tuple[str, ...]:
        return ("sft",)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text('{"a": 1}\n')
    return path


def finish(config: StageConfig, **files: str) -> Path:
    """The stage, finished, with these files among its outputs."""
    stage = runs.begin(config)
    for path in config.input_paths():
        stage.add_input(path, rows=1)
    for name, text in files.items():
        (stage.dir / name).parent.mkdir(parents=True, exist_ok=True)
        (stage.dir / name).write_text(text)
    return stage.finish()


def manifest(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())


# ---- A stage from begin to finish -------------------------------------------------------------------------------


def test_the_manifest_has_the_keys_that_scripts_rely_on_and_hashes_of_everything(tmp_path: Path, data: Path) -> None:
    stage = runs.begin(First(run_dir=tmp_path / "run", data=data, seed=3))
    dropped = Dropped()
    dropped.add("too long", 2)
    stage.add_input(data, rows=1, dropped=dropped)
    (stage.dir / "model").mkdir()
    (stage.dir / "model/weights").write_text("w")
    stage.log({"step": 1, "loss": 2.0})
    stage.find("info", "few", "few rows")
    stage.find("warn", "slow", "slow")
    stage.facts.update(device="NVIDIA H100", dtype="bfloat16", tokens_per_s=12.5)
    found = manifest(stage.finish())
    assert set(found) == {*KEYS, "identity", "contents", "fingerprint", "tokens_per_s", "content_sha256"}
    assert (found["stage"], found["status"], found["seed"]) == ("sft", "complete", 3)
    assert (found["device"], found["dtype"], found["tokens_per_s"]) == ("NVIDIA H100", "bfloat16", 12.5)
    counts = {"rows": 1, "dropped": {"too long": 2}, "columns_not_read": {}}
    assert found["inputs"] == [{"path": str(data), "sha256": sha256_file(data), **counts}]
    assert [entry["path"] for entry in found["outputs"]] == ["config.yaml", "metrics.jsonl", "model/weights"]
    assert all(entry["sha256"] == sha256_file(stage.dir / entry["path"]) for entry in found["outputs"])
    assert found["verdict"] == {
        "status": "warn",
        "findings": [
            {"level": "info", "code": "few", "message": "few rows"},
            {"level": "warn", "code": "slow", "message": "slow"},
        ],
    }
    assert found["versions"]["python"].startswith("3.")
    second = manifest(finish(Second(run_dir=tmp_path / "run")))
    assert second["parents"] == [{"stage": "sft", "manifest_sha256": sha256_file(stage.dir / "manifest.json")}]


def test_an_unfinished_stage_has_no_manifest_and_the_next_one_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(RunError) as caught:
        runs.begin(Second(run_dir=tmp_path))
    advice = "run `trueup sft CONFIG` first, or `trueup run CONFIG` for the whole sequence"
    assert str(caught.value) == f"{tmp_path / 'sft'} is not there: {advice}"
    stage = runs.begin(First(run_dir=tmp_path))
    (stage.dir / "result.json").write_text("{}")
    assert runs.find_stage(tmp_path, "sft") is None
    with pytest.raises(RunError) as caught:
        runs.begin(Second(run_dir=tmp_path))
    assert str(caught.value) == f"{tmp_path / 'sft'} is unfinished: {advice}"


def test_the_manifest_is_written_after_every_other_file_and_not_at_all_if_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = runs.begin(First(run_dir=tmp_path))
    hashed: list[str] = []

    def fails(path: Path) -> str:
        hashed.append(path.name)
        raise OSError("disk full")

    monkeypatch.setattr(runs, "sha256_file", fails)
    with pytest.raises(OSError, match="disk full"):
        stage.finish()
    assert hashed == ["config.yaml"] and not (stage.dir / "manifest.json").exists()


def test_a_stage_that_is_run_again_starts_clean_but_keeps_the_label_store(tmp_path: Path) -> None:
    directory = finish(First(run_dir=tmp_path), **{"model/weights": "old", "report.json": "{}"})
    for name in ("labels.sqlite", "labels.sqlite-wal", "log.txt"):
        (directory / name).write_text("kept")
    runs.begin(First(run_dir=tmp_path))
    left = sorted(path.name for path in directory.iterdir())
    assert left == ["begun.json", "config.yaml", "labels.sqlite", "labels.sqlite-wal", "log.txt"]


SOMEBODYS = ["notes.txt", "my_labels.sqlite", "my_labels.sqlite-wal", "old/model/weights", ".hidden"]
SOMEBODYS += ["checkpoint-monday.sqlite", "checkpoint-7", "checkpoint-final/weights", "mine.partial"]


@pytest.mark.parametrize("state", ["unfinished", "finished", "without its manifest", "not begun"])
def test_a_stage_removes_nothing_that_it_did_not_write(tmp_path: Path, state: str) -> None:
    directory = tmp_path / "sft"
    if state != "not begun":
        finish(First(run_dir=tmp_path), **{"model/weights": "old", "report.json": "{}"})
    if state == "unfinished":
        stage = runs.begin(First(run_dir=tmp_path, rate=2.0))
        (stage.dir / "report.json").write_text("{}")
    if state == "without its manifest":
        (directory / "manifest.json").unlink()
    for name in SOMEBODYS:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text("somebody's")
    finish(First(run_dir=tmp_path, rate=3.0), **{"report.json": "{}"})
    assert all((directory / name).read_text() == "somebody's" for name in SOMEBODYS)
    assert not (directory / "model").exists(), "what the stage had written is gone"
    named = {entry["path"] for entry in manifest(directory)["outputs"]}
    assert named == {"config.yaml", "report.json"}, "and it does not pass for a result"


@pytest.mark.parametrize("name", ["model/notes.txt", "adapter", "report.html"])
def test_what_stands_under_the_name_of_a_result_and_is_somebodys_stops_the_stage_before_it_removes_anything(
    tmp_path: Path, name: str
) -> None:
    directory = finish(First(run_dir=tmp_path), **{"model/weights": "old"})
    (directory / name).write_text("somebody's")
    with pytest.raises(RunError) as caught:
        runs.begin(First(run_dir=tmp_path, rate=2.0))
    assert (
        str(caught.value)
        == f"{directory / name}: the sft stage did not write it and would remove it: move it elsewhere"
    )
    assert (directory / "model/weights").read_text() == "old" and (directory / "manifest.json").exists()


def test_a_folder_that_no_stage_wrote_is_left_alone_whatever_its_files_are_called(tmp_path: Path) -> None:
    (tmp_path / "sft/model").mkdir(parents=True)
    (tmp_path / "sft/model/weights").write_text("of another project")
    with pytest.raises(RunError, match="is in the way of the sft stage, which did not write it"):
        runs.begin(First(run_dir=tmp_path))
    assert (tmp_path / "sft/model/weights").read_text() == "of another project"


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/weights").write_text("kept")
    stage = runs.begin(First(run_dir=tmp_path))
    (stage.dir / "model").symlink_to(tmp_path / "mine")
    runs.begin(First(run_dir=tmp_path, rate=2.0))
    assert (tmp_path / "mine/weights").read_text() == "kept" and not (stage.dir / "model").exists()


def test_only_an_interrupted_run_of_the_same_config_inputs_and_parents_goes_on(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"

    def interrupted(config: StageConfig) -> runs.StageRun:
        stage = runs.begin(config)
        (stage.dir / "checkpoint-5").mkdir(exist_ok=True)
        return stage

    def resumed(config: StageConfig) -> tuple[bool, bool]:
        expected = runs.resumable(config)
        stage = runs.begin(config)
        assert stage.resumed == expected
        return stage.resumed, (stage.dir / "checkpoint-5").exists()

    config = First(run_dir=run, data=data)
    assert not interrupted(config).resumed
    assert resumed(config) == (True, True)
    moved = data.rename(tmp_path / "moved.jsonl")
    assert resumed(First(run_dir=run, data=moved)) == (False, False), "the path is part of this identity"
    interrupted(config := First(run_dir=run, data=moved))
    moved.write_text("changed")
    assert resumed(config) == (False, False), "an input changed"
    interrupted(config)
    assert resumed(First(run_dir=run, data=moved, rate=2.0)) == (False, False), "a key changed"
    finish(First(run_dir=run, data=moved))
    interrupted(Second(run_dir=run))
    assert resumed(Second(run_dir=run)) == (True, True)
    finish(First(run_dir=run, data=moved, rate=3.0))
    assert resumed(Second(run_dir=run)) == (False, False), "a parent changed"
    finish(Second(run_dir=run))
    assert resumed(Second(run_dir=run)) == (False, False), "it was complete"


def test_checkpoints_and_partial_files_are_no_outputs(tmp_path: Path) -> None:
    stage = runs.begin(First(run_dir=tmp_path))
    (stage.dir / "checkpoint-5").mkdir()
    (stage.dir / "checkpoint-5/weights").write_text("w")
    (stage.dir / "labels.sqlite").write_text("changes all the time")
    directory = stage.finish()
    assert [entry["path"] for entry in manifest(directory)["outputs"]] == ["config.yaml"]
    assert not (directory / "checkpoint-5").exists() and not (directory / "begun.json").exists()


def test_a_manifest_that_is_not_json_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    directory = finish(First(run_dir=tmp_path))
    (directory / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json: not JSON .*; delete it to make the stage run again"):
        runs.find_stage(tmp_path, "sft")


# ---- One run at a time ------------------------------------------------------------------------------------------

HOLD = """
import pathlib, subprocess, sys, time
from trueup.commandline.running import locked
with locked(pathlib.Path(sys.argv[1])) as lock:
    child = subprocess.Popen(["sleep", "60"], pass_fds=(lock,))
    print(child.pid, flush=True)
    time.sleep(60)
"""


def test_a_run_directory_is_held_until_the_last_process_that_writes_to_it_is_gone(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(RunError) as caught, locked(tmp_path):
            pass
        expected = f"{tmp_path} is in use by another trueup (process {holder.pid}); wait, or stop it"
        assert str(caught.value) == expected
        holder.kill()
        holder.wait()
        with pytest.raises(RunError), locked(tmp_path):
            pass
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)
        holder.communicate()
    for _ in range(100):
        try:
            with locked(tmp_path):
                break
        except RunError:
            time.sleep(0.05)
    else:
        pytest.fail("the lock outlived every process that held it")


# ---- Verification -----------------------------------------------------------------------------------------------


@pytest.fixture
def finished(tmp_path: Path, data: Path) -> Path:
    run = tmp_path / "run"
    finish(First(run_dir=run, data=data), **{"model/weights": "some bytes", "report.json": "{}"})
    finish(Second(run_dir=run), **{"candidates.jsonl": "rows"})
    return run


def test_an_untouched_run_verifies(finished: Path) -> None:
    (finished / "sft/log.txt").write_text("said later")
    (finished / "labels").mkdir()
    (finished / "labels/labels.sqlite").write_text("no manifest yet")
    found = verify(finished)
    assert found.problems == []
    # Three outputs, one input and the manifest of sft; two outputs, one parent and the manifest of sample; two seals.
    assert found.checked == 11


@pytest.mark.parametrize("file", ["sft/model/weights", "sft/report.json", "sft/config.yaml", "sample/candidates.jsonl"])
def test_one_changed_byte_in_any_output_is_found(finished: Path, file: str) -> None:
    path = finished / file.replace("sample", "candidates")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert verify(finished).problems == [f"{path}: changed since {file.split('/')[0]} wrote it"]


def test_a_missing_file_an_extra_one_and_a_changed_or_missing_input_are_found(finished: Path, data: Path) -> None:
    (finished / "sft/model/weights").unlink()
    (finished / "sft/model/extra").write_text("not ours")
    data.write_text("changed")
    assert verify(finished).problems == [
        f"{finished}/sft/model/weights: missing",
        f"{finished}/sft/model/extra: not in the manifest of sft",
        f"{data}: changed since sft read it",
    ]
    data.unlink()
    assert f"{data}: input of sft, missing" in verify(finished).problems


def test_a_parent_that_was_swapped_changed_or_removed_is_found(finished: Path, data: Path) -> None:
    swapped = f"{finished}/sft/manifest.json: not the sft that sample was made from"
    finish(First(run_dir=finished, data=data, rate=2.0), **{"model/weights": "some bytes", "report.json": "{}"})
    assert verify(finished).problems == [swapped]
    (finished / "sft/manifest.json").unlink()
    assert verify(finished).problems == [
        f"{finished}/sft/manifest.json: missing; sft was finished and sealed",
        f"{finished}/sft: parent of sample, unfinished or missing",
    ]


@pytest.mark.parametrize(("old", "new"), [('"seed": 0', '"seed": 1'), ('"pass"', '"warn"'), ("[]", "[ ]")])
def test_a_changed_manifest_is_found_also_of_the_last_stage_which_has_no_child(
    finished: Path, old: str, new: str
) -> None:
    path = finished / "candidates/manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    assert verify(finished).problems == [
        f"{path}: not the one that was sealed when sample was finished",
        f"{path}: changed since sample wrote it",
    ]


def test_a_last_stage_that_was_edited_and_given_a_new_seal_of_its_own_is_found(finished: Path) -> None:
    (finished / "candidates/candidates.jsonl").write_text("nicer rows")
    edited = manifest(finished / "candidates")
    for output in edited["outputs"]:
        output["sha256"] = sha256_file(finished / "candidates" / output["path"])
    (finished / "candidates/manifest.json").write_text(runs.sealed_text(edited))
    assert verify(finished).problems == [
        f"{finished}/candidates/manifest.json: not the one that was sealed when sample was finished"
    ]


def test_a_stage_that_was_taken_away_whole_is_found(finished: Path) -> None:
    shutil.rmtree(finished / "candidates")
    missing = f"{finished}/candidates/manifest.json: missing; sample was finished and sealed"
    assert verify(finished).problems == [missing]


def test_a_stage_that_was_begun_again_is_unfinished_and_no_problem(finished: Path) -> None:
    runs.begin(Second(run_dir=finished))
    assert verify(finished).problems == []


@pytest.mark.parametrize("line", [0, 1, 2])
@pytest.mark.parametrize("edit", ["other hash", "removed", "doubled", "no JSON", "a list"])
def test_any_edit_of_any_line_of_the_chain_is_found_by_the_chain_or_by_the_root(
    finished: Path, line: int, edit: str
) -> None:
    finish(Second(run_dir=finished), **{"candidates.jsonl": "rows"})  # begun again, then sealed: two more lines
    root, path = verify(finished).root, finished / "seals.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and verify(finished, root).problems == []
    changed = json.dumps(json.loads(lines[line]) | {"manifest_sha256": "0" * 64})
    lines[line : line + 1] = {
        "other hash": [changed],
        "removed": [],
        "doubled": [lines[line]] * 2,
        "no JSON": ["{"],
        "a list": ["[]"],
    }[edit]
    path.write_text("".join(f"{text}\n" for text in lines))
    assert verify(finished).problems


def test_a_chain_that_was_redone_whole_is_found_by_a_root_that_was_kept(finished: Path, data: Path) -> None:
    kept = verify(finished).root
    finish(Second(run_dir=finished), **{"candidates.jsonl": "other rows"})
    later = verify(finished, kept)
    assert later.problems == [] and later.notes == [
        "2 seals came after the root that you gave; it proves nothing about those"
    ]
    (finished / "seals.jsonl").unlink()
    finish(First(run_dir=finished, data=data), **{"model/weights": "other bytes"})
    finish(Second(run_dir=finished), **{"candidates.jsonl": "other rows"})
    assert verify(finished).problems == [], "without a root nobody can tell"
    assert verify(finished, kept).problems == [
        f"{finished}/seals.jsonl: no seal has the root {kept}: the chain is another one"
    ]


@pytest.mark.parametrize("name", ["notes.txt", "compare.old/report.json", "sft/notes.txt", "sft/own.sqlite"])
def test_whatever_lies_beside_the_stages_or_in_them_and_is_not_theirs_is_named(finished: Path, name: str) -> None:
    path = finished / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("somebody's")
    [problem] = verify(finished).problems
    assert problem.startswith(str(path if name.startswith("sft") else finished / name.split("/")[0]))


BROKEN = {
    "empty": "",
    "null": "null",
    "a list": "[]",
    "a number": "1",
    "a text": '"complete"',
    "an empty object": "{}",
    "nested deeply": "[" * 100_000,
    "cut": '{"stage": "sft", "status"',
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_manifest_that_is_none_is_a_problem_with_its_path_and_stops_no_other_check(finished: Path, text: str) -> None:
    path = finished / "sft/manifest.json"
    path.write_text(text)
    (finished / "candidates/candidates.jsonl").write_text("edited")
    problems = verify(finished).problems
    assert problems[0].startswith(f"{path}: not ") and "delete it to make the stage run again" in problems[0]
    assert f"{finished}/candidates/candidates.jsonl: changed since sample wrote it" in problems
    with pytest.raises(RunError, match="delete it to make the stage run again"):
        runs.find_stage(finished, "sft")


@pytest.mark.parametrize("value", [None, 7, "text", [], {}, [7], {"path": 7}, [{"path": 7}], [{"path": "../x"}]])
def test_a_manifest_with_any_value_at_any_key_is_read_or_refused_and_never_a_traceback(
    finished: Path, value: Any
) -> None:
    path = finished / "sft/manifest.json"
    sound = json.loads(path.read_text())
    for key in sound:
        for changed in (sound | {key: value}, {name: sound[name] for name in sound if name != key}):
            path.write_text(json.dumps(changed))
            assert verify(finished).problems, key


def test_a_manifest_that_is_not_text_or_a_folder_is_a_problem(finished: Path) -> None:
    path = finished / "sft/manifest.json"
    path.write_bytes(b"\xff\xfe\x00")
    assert verify(finished).problems[0].startswith(f"{path}: not JSON")
    path.unlink()
    path.mkdir()
    assert verify(finished).problems[0] == f"{path}: cannot be read (is a folder; a file is wanted)"


def test_what_is_no_file_is_a_problem_and_not_read_for_ever(finished: Path) -> None:
    path = finished / "sft/manifest.json"
    stated = json.loads(path.read_text())
    stated["inputs"][0]["path"] = "/dev/zero"
    path.write_text(runs.sealed_text(stated))
    named = next(entry["path"] for entry in stated["outputs"] if entry["path"] != "config.yaml")
    (finished / "sft" / named).unlink()
    os.mkfifo(finished / "sft" / named)
    problems = verify(finished).problems
    assert "/dev/zero: input of sft, no file" in problems and f"{finished / 'sft' / named}: no file" in problems


@pytest.mark.parametrize("name", ["candidates/manifest.json", "seals.jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device"])
def test_a_manifest_or_chain_that_is_no_file_is_a_problem_and_not_read_for_ever(
    finished: Path, name: str, kind: str
) -> None:
    (finished / name).unlink()
    os.mkfifo(finished / name) if kind == "pipe" else (finished / name).symlink_to("/dev/zero")
    assert (
        f"{finished / name}: cannot be read (is a pipe, a socket or a device; a file is wanted)"
        in verify(finished).problems
    )


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "\ud800", "~/x", "\x1b[2J"])
def test_a_path_that_no_file_can_have_is_a_problem_that_can_be_printed(
    finished: Path, path: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    file = finished / "sft/manifest.json"
    stated = json.loads(file.read_text())
    output = {"path": path, "sha256": "0"}
    entries = {"inputs": {**output, "rows": 1, "dropped": {}, "columns_not_read": {}}, "outputs": output}
    entries["parents"] = {"stage": path, "manifest_sha256": "0"}
    for key, entry in entries.items():
        file.write_text(json.dumps(stated | {key: [*stated[key], entry]}))
        told = f"{file}: not JSON (" if path == "\ud800" else path  # half a character is none in JSON
        problems = [problem for problem in verify(finished).problems if told in problem]
        assert len(problems) == 1, key
        say(problems[0])
        assert b"\x1b" not in capsysbinary.readouterr().out


def test_a_pipe_in_a_stage_and_a_result_that_is_named_twice_are_found(finished: Path) -> None:
    os.mkfifo(finished / "sft/model/pipe")
    assert verify(finished).problems == [f"{finished}/sft/model/pipe: not in the manifest of sft"]
    path = finished / "candidates/manifest.json"
    stated = json.loads(path.read_text())
    path.write_text(runs.sealed_text(stated | {"outputs": stated["outputs"] * 2}))
    assert f"{path}: names a result more than once" in verify(finished).problems


def test_a_link_to_the_same_bytes_elsewhere_is_named(finished: Path, tmp_path: Path) -> None:
    for name in ("sft/report.json", "candidates"):
        (finished / name).rename(tmp_path / "elsewhere.json" if "." in name else tmp_path / "elsewhere")
        (finished / name).symlink_to(tmp_path / ("elsewhere.json" if "." in name else "elsewhere"))
    found = verify(finished)
    says = "a link; its bytes lie elsewhere and may change there"
    assert found.problems == []
    assert found.notes == [f"{finished}/sft/report.json: {says}", f"{finished}/candidates: {says}"]


def test_a_run_verifies_from_any_directory(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    finish(First(run_dir=tmp_path / "run", data=Path(data.name)))
    monkeypatch.chdir("/")
    assert verify(tmp_path / "run").problems == []


def test_a_folder_without_any_stage_is_no_run(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunError) as caught:
            verify(directory)
        assert str(caught.value) == f"{directory}: not a run directory (no stage folder in it)"


# ---- Files that do not fit ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"duration_s": "long"}, "duration_s: Input should be a valid number"),
        ({"verdict": {"status": "fine", "findings": []}}, "verdict.status: Input should be 'pass', 'warn' or 'fail'"),
        ({"inputs": [{"path": "a", "sha256": "b"}]}, "inputs.0.rows: Field required"),
        ({"tokens": 3}, "tokens: Extra inputs are not permitted"),
    ],
)
def test_a_manifest_that_does_not_fit_is_one_sentence_with_file_and_key(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    path = finish(First(run_dir=tmp_path)) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError) as told:
        runs.find_stage(tmp_path, "sft")
    assert str(told.value) == f"{path}: not a manifest ({key}); delete it to make the stage run again"
