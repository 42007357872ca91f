"""The command line: exit codes, what is said, and a campaign that survives being killed."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import storms
from trueup import runs
from trueup.cli import main
from trueup.commandline.running import locked
from trueup.data.records import read_jsonl
from trueup.errors import RunError
from trueup.models import loading
from trueup.verify import verify

Cli = Callable[..., tuple[int, str, str]]
Started = Callable[..., subprocess.Popen[str]]
MINIMAL = "name: mine\nsft: {data: [starter]}\nsample: {prompts: starter}\n"


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """Exit code, standard output and standard error of a command, in this process."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def with_policy(campaign: Callable[..., Any], tmp_path: Path) -> Any:
    """A campaign whose SFT stage is complete: the base model, as if it had been trained."""
    made = campaign(tmp_path)
    stage = runs.begin(made.stages["sft"])
    for path in made.stages["sft"].input_paths():
        stage.add_input(path, rows=16)
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    return made


# ---- Errors -----------------------------------------------------------------------------------------------------


def test_a_missing_file_and_a_wrong_key_are_a_message_and_exit_code_2(cli: Cli, tmp_path: Path) -> None:
    assert cli("run", tmp_path / "none.yaml") == (2, "", f"{tmp_path}/none.yaml: 1 problem\n  no such file\n")
    (tmp_path / "bad.yaml").write_text(MINIMAL + "align: {bta: 1}\n")
    said = f"{tmp_path}/bad.yaml: 1 problem\n  align.bta: unknown key; did you mean beta?\n"
    for command in ("run", "sft", "check", "status", "label"):
        assert cli(command, tmp_path / "bad.yaml") == (2, "", said)
    assert cli("status", tmp_path / "bad.yaml", "--set", "align.beta") == (
        2,
        "",
        "--set: 1 problem\n  'align.beta' is not of the form key.subkey=value\n",
    )


def test_what_would_stop_the_last_stage_stops_the_run_before_anything_is_trained(
    trueup: Started, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made = campaign(
        tmp_path, sft={"max_steps": 1000}, align={"lora": {"target_modules": ["qproj"]}, "lr_scheduler_type": "consine"}
    )
    process = trueup("run", made.source)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2, said
    first, *lines = said.strip().splitlines()
    assert first == f"sft: {made.source}: 2 problems"
    assert [line.partition(": ")[0].strip() for line in lines] == [
        "align.lora.target_modules",
        "align.lr_scheduler_type",
    ]
    assert "Traceback" not in said and not (made.run_dir / "sft" / "metrics.jsonl").exists()


def test_a_stage_without_its_parent_says_what_to_run_first(
    cli: Cli, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    made = campaign(tmp_path)
    advice = "run `trueup sft CONFIG` first, or `trueup run CONFIG` for the whole sequence\n"
    assert cli("sample", made.source) == (2, "", f"{made.run_dir}/sft is not there: {advice}")


def test_an_unknown_command_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["trian"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "invalid choice: 'trian'" in said and "'sft'" in said and "Traceback" not in said


def test_a_run_directory_in_use_is_refused(cli: Cli, campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path)
    with locked(made.run_dir):
        code, out, err = cli("run", made.source)
    assert (code, out) == (2, "")
    assert err == f"{made.run_dir} is in use by another trueup (process {os.getpid()}); wait, or stop it\n"


@pytest.fixture
def soon() -> Iterator[None]:
    """What waits for ever is interrupted, and fails."""

    def stop(*_: Any) -> None:
        raise TimeoutError("it waits for ever")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    (path / "within").mkdir(parents=True)


def put_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("put", [put_pipe, put_folder, put_device])
def test_whatever_stands_in_the_place_of_a_file_of_a_run_is_a_sentence_and_nothing_waits_for_it(
    cli: Cli, with_policy: Any, put: Callable[[Path], None], soon: None
) -> None:
    run_dir = with_policy.run_dir
    asked = {"run": ("run", with_policy.source), "check": ("check", with_policy.source), "verify": ("verify", run_dir)}
    (run_dir / "candidates").mkdir()
    # The first command that needs the file refuses it; the others look at it, or need it not.
    for name, commands in {
        "sft/manifest.json": ("run", "verify"),
        "align/manifest.json": ("run", "verify"),
        "seals.jsonl": ("run", "verify"),
        ".lock": ("run",),
        "candidates/log.txt": ("run",),
    }.items():
        path = run_dir / name
        path.parent.mkdir(exist_ok=True)
        kept = path.read_bytes() if path.exists() else None
        path.unlink(missing_ok=True)
        put(path)
        for command, arguments in asked.items():
            code, out, err = cli(*arguments)
            assert code in (0, 1, 2) and "Traceback" not in out + err, (name, command)
            if command in commands:
                said = err if command == "run" else out
                wanted = " is a folder; a file" if put is put_folder else " is a pipe, a socket or a device; a file"
                assert code and wanted in said.replace("(is", " is") and str(path) in said, (name, command, said)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        if kept is not None:
            path.write_bytes(kept)


def test_what_stands_in_the_place_of_a_folder_of_a_run_is_a_sentence(cli: Cli, with_policy: Any, soon: None) -> None:
    run_dir = with_policy.run_dir
    os.mkfifo(run_dir / "align")
    said = f"{run_dir}/align: is not a folder, as the align stage needs: move it elsewhere"
    assert cli("run", with_policy.source) == (2, "", f"{said}\n")
    assert said in cli("verify", run_dir)[1]
    os.mkfifo(run_dir.parent / "pipe")
    code, _, err = cli("run", with_policy.source, "--set", f"run_dir={run_dir.parent}/pipe")
    assert (code, err) == (
        2,
        f"{run_dir.parent}/pipe: is not a folder, as a run must be: move it elsewhere, or give another run_dir\n",
    )
    os.mkfifo(run_dir.parent / "pipe.jsonl")
    code, out, _ = cli("check", with_policy.source, "--set", "sft.data=[pipe.jsonl]")
    assert code == 1 and f"sft.data: {run_dir.parent}/pipe.jsonl: is no file; a file is wanted" in out


# ---- Looking ----------------------------------------------------------------------------------------------------


def test_the_plan_is_printed_with_its_reasons_and_nothing_is_run(cli: Cli, with_policy: Any) -> None:
    code, out, err = cli(
        "run",
        with_policy.source,
        "--plan",
    )
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == f"tiny in {with_policy.run_dir}"
    assert lines[1].startswith("  sft      keep   up to date (")
    assert lines[2:7] == [
        f"  {stage:<8} run    not run yet" for stage in ("sample", "label", "reward", "align", "compare")
    ]
    assert sorted(path.name for path in with_policy.run_dir.iterdir()) == [".lock", "seals.jsonl", "sft"]
    assert cli("status", with_policy.source)[1].splitlines()[:2] == lines[:2]
    only_sft = cli("run", with_policy.source, "--plan", "--until", "sft")[1]
    assert only_sft.splitlines()[1:] == [lines[1], ""]


def test_a_reason_with_brackets_is_shown_as_it_is(cli: Cli, with_policy: Any) -> None:
    code, out, _ = cli("status", with_policy.source, "--set", "sft.lr_scheduler_type='[/b] a [kind]'")
    assert code == 0 and "lr_scheduler_type: 'cosine' -> '[/b] a [kind]'" in out


def test_verify_says_what_it_checked_and_fails_on_a_changed_byte(cli: Cli, with_policy: Any) -> None:
    run = with_policy.run_dir
    code, out, err = cli("verify", run)
    count = int(out.removeprefix(f"{run}: ").split()[0])
    counted, root = out.splitlines()[:2]
    assert (code, counted, err) == (0, f"{run}: {count} hashes checked, 0 problems", "") and count > 6
    assert cli("verify", run, "--root", root.split()[1])[0] == 0
    assert cli("verify", run, "--root", "0" * 64)[0] == 1
    weights = run / "sft/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    code, out, _ = cli("verify", run)
    assert (code, out) == (
        1,
        f"problem  {weights}: changed since sft wrote it\n{run}: {count} hashes checked, 1 problem\n",
    )
    assert cli("verify", run / "sft") == (2, "", f"{run}/sft: not a run directory (no stage folder in it)\n")


# ---- Running ----------------------------------------------------------------------------------------------------


def wait(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err


def held(run_dir: Path) -> bool:
    try:
        with locked(run_dir):
            return False
    except RunError:
        return True


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 90) -> None:
    end = time.time() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.time() < end, "waited too long"
        time.sleep(0.02)


def test_one_stage_runs_alone_on_a_parent_that_is_there_and_says_if_that_is_stale(cli: Cli, with_policy: Any) -> None:
    code, out, err = cli("sample", with_policy.source, "--set", "sft.learning_rate=0.5")
    assert (code, err) == (0, "sft is used as it is, but is not up to date: learning_rate: 0.01 -> 0.5\n")
    lines = out.splitlines()
    assert lines[1] == "  sample   run    not run yet" and not any(line.startswith("  sft") for line in lines)
    assert any(line.startswith("sample   warn in ") for line in lines)
    assert "% of answers end within 8 tokens\n" in out
    code, out, err = cli("sample", with_policy.source)
    assert (code, err) == (0, "") and out.splitlines()[1].startswith("  sample   keep   up to date")


def test_a_stage_that_cannot_go_on_says_why_in_one_line(cli: Cli, campaign: Callable[..., Any], tmp_path: Path) -> None:
    made = campaign(tmp_path)
    (tmp_path / "demonstrations.jsonl").write_text('{"messages": []}\n{"mesages": []}\n')
    code, out, err = cli("sft", made.source)
    assert code == 2 and "Traceback" not in out + err, err
    assert err.startswith(f"sft: {tmp_path}/demonstrations.jsonl: 2 problems\n")
    assert runs.find_stage(made.run_dir, "sft") is None


def test_a_crash_shows_its_traceback_and_where_the_log_is(
    cli: Cli, campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = campaign(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(
        "import sft.train\ndef run(config):\n    raise ZeroDivisionError('a bug')\nsft.train.run = run\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.getcwd()]))
    code, _, err = cli("sft", made.source)
    assert code == 1
    assert "Traceback (most recent call last):" in err and "ZeroDivisionError: a bug" in err
    assert err.endswith(f"sft crashed; its whole log is {made.run_dir}/sft/log.txt. The same command continues.\n")


@pytest.mark.parametrize("room", [0, 20_000], ids=["none", "too little for the weights"])
def test_a_disk_without_room_is_one_sentence_and_leaves_no_result(
    trueup: Started, campaign: Callable[..., Any], tmp_path: Path, room: int
) -> None:
    made = campaign(tmp_path, sft={"max_steps": 1, "save_steps": 5})
    process = trueup("sft", made.source, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)))
    code, out, err = wait(process)
    assert code == 2 and "Traceback" not in out + err, err
    assert len(err.splitlines()) == 1 and "fix the cause, and the same command continues" in err, err
    assert not (made.run_dir / "sft/manifest.json").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="NOT ROOT: no small disk can be mounted")
def test_a_training_whose_disk_fills_up_goes_on_and_ends_bit_for_bit_as_if_it_had_not(
    trueup: Started, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"max_steps": 40, "save_steps": 4, "lora": {"r": 4}}

    def made_in(folder: Path) -> Any:
        folder.mkdir(exist_ok=True)
        return campaign(folder, sft=keys)

    def results(run_dir: Path) -> dict[str, bytes]:
        files = [*(run_dir / "sft/model").iterdir(), *(run_dir / "sft/adapter").glob("*.safetensors")]
        return {file.name: file.read_bytes() for file in files}

    def losses(run_dir: Path) -> dict[int, float]:
        return {row["step"]: row["loss"] for _, row in read_jsonl(run_dir / "sft/metrics.jsonl") if "loss" in row}

    whole = made_in(tmp_path / "whole")
    assert wait(trueup("sft", whole.source))[0] == 0
    with storms.small_disk(32) as disk:
        made = made_in(disk)
        process = trueup("sft", made.source)
        until(lambda: list((made.run_dir / "sft").glob("checkpoint-*/trainer_state.json")), process)
        ballast = storms.fill(disk)
        code, out, err = wait(process)
        assert code == 2 and "Traceback" not in out + err, err
        assert len(err.splitlines()) == 1 and "fix the cause, and the same command continues" in err, err
        assert not (made.run_dir / "sft/manifest.json").exists()
        ballast.unlink()
        again = trueup("sft", made.source)
        code, out, err = wait(again)
        assert code == 0 and "resume       from checkpoint-" in out, err
        assert results(made.run_dir) == results(whole.run_dir)
        assert losses(made.run_dir) == losses(whole.run_dir) and len(losses(whole.run_dir)) == 40
        assert verify(made.run_dir).problems == []


def test_a_campaign_survives_kill_9_and_ctrl_c_and_stops_where_people_are_needed(
    trueup: Started, campaign: Callable[..., Any], tmp_path: Path
) -> None:
    keys = {"max_steps": 300, "save_steps": 20, "train_batch_size": 8, "lora": {"r": 16}}
    made = campaign(tmp_path, sft=keys, label={"source": "human"})
    directory = made.run_dir / "sft"

    def steps() -> list[int]:
        return [row["step"] for _, row in read_jsonl(directory / "metrics.jsonl") if "loss" in row]

    def newest() -> int:
        whole = directory.glob("checkpoint-*/trainer_state.json")
        return max((int(path.parent.name.split("-")[1]) for path in whole), default=0)

    # kill -9 of the command alone: its stage must not go on without it, or it would hold the directory
    process = trueup("run", made.source)
    until(lambda: newest() >= 20, process)
    process.kill()
    process.wait()
    end = time.time() + 20
    while held(made.run_dir):
        assert time.time() < end, "the stage goes on without the command that started it"
        time.sleep(0.1)
    reached = newest()
    assert 20 <= reached < 300 and not (directory / "manifest.json").exists()

    # Ctrl-C in a terminal: every process of the group gets it
    process = trueup("run", made.source)
    until(lambda: newest() >= reached + 20, process)
    os.killpg(process.pid, signal.SIGINT)
    code, out, err = wait(process, 30)
    assert (code, err) == (130, "\nInterrupted. The same command continues where this one stopped.\n")
    assert (
        "  sft      resume interrupted, continues\n" in out
        and f"sft      resume       from checkpoint-{reached}\n" in out
    )
    assert not (directory / "manifest.json").exists()

    # To the label stage, which waits for people
    code, out, err = wait(trueup("run", made.source))
    assert (code, err) == (3, "")
    assert (
        "0 labels of people so far (0 skipped); " in out and "Open the labelling page with `trueup label CONFIG`" in out
    )
    assert steps() == list(range(1, 301)), "every step once, whatever was done twice"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["steps"], manifest["status"]) == (300, "complete")
    assert (made.run_dir / "labels/labels.sqlite").exists() and not (made.run_dir / "labels/manifest.json").exists()

    # What is complete is not repeated
    before = (directory / "manifest.json").read_bytes()
    code, out, _ = wait(trueup("run", made.source))
    assert code == 3 and "  sft      keep   up to date" in out and "  sample   keep   up to date" in out
    assert (directory / "manifest.json").read_bytes() == before
    assert verify(made.run_dir).problems == []


# ---- People and labels ------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def accounts(cli: Any, campaign: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`accounts("add", "Ann", typed="...")`: `trueup accounts ACTION CONFIG ...` with a line on standard input."""
    config = campaign(tmp_path).source

    def run(action: str, *arguments: str, typed: str | None = "") -> tuple[int, str, str]:
        """typed=None: at a terminal."""
        monkeypatch.setattr("sys.stdin", Terminal() if typed is None else io.StringIO(typed))
        return cli("accounts", action, config, *arguments)

    return run


def test_accounts_are_added_listed_disabled_and_enabled(accounts: Any) -> None:
    code, out, err = accounts("list")
    assert (code, out) == (0, "") and err.startswith("no accounts")
    code, out, err = accounts("add", "Ann", "--role", "admin", typed="four words are enough\n")
    said = re.fullmatch(r"Ann: admin, (annotator-[0-9a-f]{6}) in labels and exports\n", out)
    assert said and (code, err) == (0, "")
    assert accounts("add", "Bob", typed="four words are enough")[0] == 0
    assert accounts("disable", "bob") == (0, "bob: disabled and signed out; their labels stay\n", "")
    lines = accounts("list")[1].splitlines()
    assert re.fullmatch(rf"{said[1]}  admin      since \d{{4}}-\d\d-\d\d  Ann", lines[0])
    assert re.fullmatch(r"annotator-\w{6}  annotator  since \S+  Bob  disabled", lines[1]) and len(lines) == 2
    assert accounts("enable", "Bob") == (0, "Bob: may sign in again\n", "")
    assert not accounts("list")[1].endswith("disabled\n")


def test_what_cannot_be_done_with_an_account_is_said_and_changes_nothing(accounts: Any) -> None:
    accounts("add", "Ann", typed="four words are enough\n")
    before = accounts("list")
    assert accounts("add", "ann", typed="four words are enough\n")[2] == "the name 'ann' is taken; take another\n"
    short = "a password has 10 to 256 characters, this one has 5\n"
    assert accounts("add", "Bob", typed="short\n") == (2, "", short)
    assert accounts("password", "Bob", typed="four words are enough\n") == (
        2,
        "",
        "no account is named 'Bob'; known: Ann\n",
    )
    assert accounts("invite", "--days", "-1")[0] == 2
    assert accounts("list") == before


def test_a_password_is_asked_for_twice_and_never_an_argument(accounts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["four words are enough", "four words are not", "four words are enough", "four words are enough"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    assert accounts("add", "Ann", typed=None) == (2, "", "the two passwords differ; nothing was changed\n")
    assert accounts("add", "Ann", typed=None)[0] == 0
    with pytest.raises(SystemExit):
        accounts("add", "Bob", "a password as an argument")
    with pytest.raises(SystemExit):
        accounts("add", "Bob", "--password", "four words are enough")


def test_open_invitations_are_listed_and_one_is_withdrawn(accounts: Any) -> None:
    assert accounts("invitations") == (0, "", "no invitation is open\n")
    for role in ("annotator", "admin"):
        accounts("invite", "--role", role)
    lines = accounts("invitations")[1].splitlines()
    told = [re.fullmatch(r"[0-9a-f]{12}  (\w+) +until \S+", line) for line in lines]
    assert [line and line[1] for line in told] == ["annotator", "admin"]
    name = lines[0][:12]
    assert accounts("withdraw", name[:8]) == (0, f"{name}: withdrawn; its link makes no account any more\n", "")
    code, _, err = accounts("withdraw", name)
    assert code == 2 and err == f"'{name}' names no open invitation; open are: {lines[1][:12]}\n"


def test_an_invitation_is_a_link_to_where_people_open_the_pages(accounts: Any) -> None:
    code, out, _ = accounts("invite", "--role", "admin", "--days", "2", "--url", "https://label.example.org/")
    assert code == 0
    assert re.fullmatch(
        r"https://label\.example\.org/invite\?token=[\w-]{32}\n"
        r"for one person, as admin, within 2 days; not shown again\n",
        out,
    )


@pytest.mark.parametrize("command", ["accounts", "labels", "label", "serve"])
def test_help_of_the_commands_about_people_needs_no_web_application(python: Any, command: str) -> None:
    code = (
        "import contextlib, io, sys, trueup.cli\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as said:\n"
        f"    trueup.cli.main(['{command}', '--help'])\n"
        "assert 'usage' in said.getvalue()\n"
        "print({'gradio', 'torch', 'fastapi', 'sqlalchemy'} & sys.modules.keys())"
    )
    assert python(code).stdout == "set()\n"


def test_accounts_and_labels_are_managed_without_gradio_or_torch(python: Any, campaign: Any, tmp_path: Path) -> None:
    code = (
        "import sys, trueup.cli\n"
        f"assert trueup.cli.main(['accounts', 'list', {str(campaign(tmp_path).source)!r}]) == 0\n"
        "import ui.labels.exchange\n"
        "print({'gradio', 'torch'} & sys.modules.keys())"
    )
    assert python(code).stdout == "set()\n"


def test_another_address_without_accounts_is_refused_with_what_to_do(cli: Any, with_policy: Any) -> None:
    for arguments in (("--host", "0.0.0.0"), ("--url", "https://label.example.org")):
        code, out, err = cli("serve", with_policy.run_dir, *arguments)
        assert (code, out) == (2, "") and err.startswith(arguments[0])
        assert "trueup accounts add CONFIG NAME --role admin" in err and "ssh -L" in err
