"""Several processes train together what one would: every stage that trains, step by step, whatever starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import warm
from safetensors.torch import load_file

from trueup import runs
from trueup.campaign import load_campaign, plan
from trueup.check import check
from trueup.errors import ConfigError
from trueup.stages import load_object

# What each process does: the whole stage, in the run that all share; and the adapter that it ends with, aside.
PROCESS = """
import os, shutil, sys
from pathlib import Path
from trueup.campaign import load_campaign
from trueup.runs import StageRun
from trueup.stages import load_object

finish = StageRun.finish

def finished(self):
    if (self.dir / "adapter").exists(): shutil.copytree(self.dir / "adapter", f"{sys.argv[3]}{os.environ['RANK']}")
    return finish(self)

StageRun.finish = finished
stage = load_campaign(Path(sys.argv[1]), sys.argv[4:]).stages[sys.argv[2]]
load_object(stage.run)(stage)
"""
TRAINING = {"train_batch_size": 4, "max_steps": -1, "num_train_epochs": 2, "lora": {"r": 4}}
PAID = {"on_failed_reward_model": "use", "max_new_tokens": 8, "eval_prompts": 2, "num_generations": 2}
SAMPLING = {**PAID, "train_batch_size": 8, "rollout_batch_size": 8, "max_steps": 4}
UNEVEN = {**TRAINING, "train_batch_size": 9}
"""Of 16 pairs seven are left for the last step, which three processes cut into 3, 2 and 2."""
LABELS = {"source": "import", "path": "labels.jsonl"}
BELOW = ("sft", "sample", "label", "reward")
STAGES: dict[str, tuple[int, dict[str, Any]]] = {
    "sft": (2, {"sft": TRAINING}),
    "sft, a row at a time": (3, {"sft": {**UNEVEN, "per_device_train_batch_size": 1}}),
    "sft, whole": (2, {"sft": {**TRAINING, "lora": None, "full_finetuning": True, "learning_rate": 1e-3}}),
    "sft, packed": (2, {"sft": {**TRAINING, "packing": True}}),
    "reward": (3, {"reward": UNEVEN}),
    "reward, ties": (2, {"reward": {**TRAINING, "ties": "rao_kupper", "start": "random"}}),
    "reward, from a probe": (2, {"label": LABELS, "reward": {**TRAINING, "start": "probe", "learning_rate": 1e-3}}),
    "dpo": (3, {"align": {**UNEVEN, "algorithm": "dpo", "grades": "weight"}}),
    "kto": (2, {"align": {**TRAINING, "algorithm": "kto"}}),
    "simpo": (3, {"align": {**UNEVEN, "algorithm": "simpo"}}),
    "best_of_n": (2, {"align": {**TRAINING, **PAID, "algorithm": "best_of_n"}}),
    "grpo": (2, {"align": {**SAMPLING, "algorithm": "grpo"}}),
    "rloo": (2, {"align": {**SAMPLING, "algorithm": "rloo"}}),
}


@pytest.fixture(scope="module")
def below(campaign: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all stages below an alignment."""
    made = campaign(tmp_path_factory.mktemp("below"))
    for stage in BELOW:
        load_object(made.stages[stage].run)(made.stages[stage])
    return Path(made.run_dir)


def on_processes(number: int, file: Path, stage: str, aside: Path, *overrides: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    waits = [
        warm.start(
            PROCESS,
            str(file),
            stage,
            str(aside),
            *overrides,
            said=aside.with_name(f"said{rank}"),
            ACCELERATE_USE_CPU="true",
            OMP_NUM_THREADS="1",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **common,
        )
        for rank in range(number)
    ]
    for done in [wait(280) for wait in waits]:
        assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.parametrize("name", STAGES)
def test_several_processes_take_the_steps_of_one(
    below: Path, campaign: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    number, keys = STAGES[name]
    questions = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No!"} for n in range(40)]
    (tmp_path / "labels.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in questions))
    made = campaign(tmp_path, **keys)
    stage = list(keys)[-1]
    for run in ("one", "several"):
        for parent in BELOW[: BELOW.index(stage) if stage in BELOW else None]:
            folder = runs.DIRECTORIES[parent]
            if parent not in keys:
                shutil.copytree(below / folder, tmp_path / run / folder)
        if "label" in keys:
            label = load_campaign(made.source, [f"run_dir={tmp_path / run}"]).stages["label"]
            load_object(label.run)(label)
    one = load_campaign(made.source, [f"run_dir={tmp_path / 'one'}"]).stages[stage]
    load_object(one.run)(one)
    on_processes(number, made.source, stage, tmp_path / "process", f"run_dir={tmp_path / 'several'}")

    folders = [runs.stage_dir(tmp_path / run, stage) for run in ("one", "several")]
    of_one, of_several = (steps(folder) for folder in folders)
    assert [row["step"] for row in of_several] == [row["step"] for row in of_one]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in of_several] == pytest.approx([row[key] for row in of_one], rel=1e-3, abs=1e-4), key
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders]
    assert names[0] == names[1], "each file once, and none of a process's own"
    trained = "adapter" if (folders[0] / "adapter").exists() else "model"
    alone = weights_in(folders[0] / trained)
    for other in [folders[1] / trained, *(Path(f"{tmp_path / 'process'}{rank}") for rank in range(1, number))]:
        if trained == "adapter" or other.is_relative_to(tmp_path / "several"):  # one writes the model
            for key, weight in weights_in(other).items():
                torch.testing.assert_close(weight, alone[key], rtol=1e-3, atol=1e-4)
    assert json.loads((folders[1] / "manifest.json").read_text())["processes"] == number


def weights_in(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


def steps(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


# ---- What starts them -------------------------------------------------------------------------------------------


def trueup(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    command, pipe = [sys.executable, "-m", "trueup", *map(str, arguments)], subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env={**os.environ, **environment})


def test_a_stage_goes_on_with_another_number_of_processes_wherever_one_is_killed(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    """One process, then two, then one. Each begins in the middle of an epoch, with the order of that epoch."""
    many = {**TRAINING, "num_train_epochs": 40, "save_steps": 2}
    made = campaign(tmp_path, sft=many, launch="ddp", processes=2)
    directory = runs.stage_dir(made.run_dir, "sft")
    killed(trueup("sft", made.source, "--set", "launch=null", "--set", "processes=null"), directory, "trueup.stage")
    reached = [len(steps(directory))]
    said, complaint = killed(trueup("sft", made.source, TMPDIR=str(tmp_path)), directory, "RANK=1")
    reached.append(len(steps(directory)))
    assert "sft      resume interrupted, continues; ddp on 2 processes" in said
    assert re.search(r"sft: process 1 of 2 was killed by SIGKILL \(out of memory\?\).* The same command", complaint)
    assert "Traceback" not in complaint
    assert not list(tmp_path.glob("trueup-launch-*")), "it may hold secrets, and copies"

    alone = load_campaign(made.source, ["launch=null", "processes=null"])
    assert [step.action for step in plan(alone, "sft")] == ["resume"]
    load_object(alone.stages["sft"].run)(alone.stages["sft"])
    of_all = steps(directory)
    assert [row["step"] for row in of_all] == list(range(1, len(of_all) + 1))
    assert 1 < reached[0] <= reached[1] < len(of_all)
    whole = campaign(tmp_path, sft=many, run_dir=str(tmp_path / "whole")).stages["sft"]
    load_object(whole.run)(whole)
    of_one = steps(runs.stage_dir(tmp_path / "whole", "sft"))
    assert [row["loss"] for row in of_all] == pytest.approx([row["loss"] for row in of_one], rel=0.02, abs=0.02)


def killed(running: subprocess.Popen[str], directory: Path, which: str) -> tuple[str, str]:
    """Kill a process of a run, by a word of its command or its environment, behind its next checkpoint. Returns what
    the run printed."""
    before = whole_checkpoints(directory)
    wait_for(lambda: whole_checkpoints(directory) - before, running)
    next(
        child
        for child in psutil.Process(running.pid).children(recursive=True)
        if which in child.cmdline() or which in [f"{key}={value}" for key, value in child.environ().items()]
    ).kill()
    printed = running.communicate(timeout=120)
    assert running.returncode
    return printed


def whole_checkpoints(directory: Path) -> set[Path]:
    return set(directory.glob("checkpoint-*/trainer_state.json"))


def wait_for(there: Callable[[], object], running: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if there():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not begin in two minutes")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"processes": 2}, r"\n  processes: only launch reads it"),
        ({"launch": "ddp", "processes": 1}, r"processes: .*greater than or equal to 2"),
        ({"launch": "fsdp"}, r"launch: .*ddp"),
        ({"launch": "ddp", "processes": 3}, r"sft\.train_batch_size: 4 rows cannot be shared by 3 processes"),
        (
            {"launch": "ddp", "processes": 2, "reward": {"per_device_train_batch_size": 4}},
            r"reward\.per_device_train_batch_size: 4 does not divide the 2 rows of a process",
        ),
        (
            {"launch": "ddp", "processes": 2, "sft": {"trainer_args": {"ddp_timeout": 60}}},
            r"sft\.trainer_args\.ddp_timeout: cannot be set beside launch, which decides it",
        ),
        (
            {"launch": "ddp", "processes": 2, "align": {**SAMPLING, "algorithm": "grpo", "num_generations": 8}},
            r"align\.rollout_batch_size: 2 processes draw 4 answers each, which are no whole groups of 8",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_when_the_file_is_read(
    campaign: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        campaign(tmp_path, **keys)


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="there is something to share")
def test_without_several_gpus_the_number_of_processes_must_be_said(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    problem = r"launch: ddp needs several processes, and there is (no|one) GPU: leave it out, or say processes"
    assert [line for line in check(campaign(tmp_path, launch="ddp"))[0] if re.search(problem, line)]
    running = trueup("sft", tmp_path / "campaign.yaml")
    assert re.search(problem, running.communicate(timeout=120)[1]) and running.returncode == 2
    problems, notes = check(campaign(tmp_path, launch="ddp", processes=2))
    assert problems == [] and "launch: ddp on 2 processes" in notes


def test_the_same_results_whatever_starts_them_so_no_stage_is_stale(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = (campaign(tmp_path, **keys) for keys in ({}, {"launch": "ddp", "processes": 2}))
    assert all(one.stages[name].identity() == two.stages[name].identity() for name in one.stages)
    assert [name for name in two.stages if two.launched(name)] == ["sft", "reward", "align"]
