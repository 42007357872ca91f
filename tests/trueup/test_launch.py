"""Several processes train together what one would: every stage that trains, step by step, whatever starts them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
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
from trueup.commandline.launch import number_of
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
PAID = {"on_failed_reward_model": "use", "max_new_tokens": 8}
SAMPLING = {**PAID, "train_batch_size": 8, "rollout_batch_size": 8, "max_steps": 4, "eval_prompts": 2}
BELOW = ("sft", "sample", "label", "reward")
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"sft": TRAINING},
    "sft, whole": {"sft": {**TRAINING, "lora": None, "full_finetuning": True, "learning_rate": 1e-3}},
    "reward": {"reward": TRAINING},
    "reward, ties": {"reward": {**TRAINING, "ties": "rao_kupper", "start": "random"}},
    "dpo": {"align": {**TRAINING, "algorithm": "dpo"}},
    "kto": {"align": {**TRAINING, "algorithm": "kto"}},
    "simpo": {"align": {**TRAINING, "algorithm": "simpo"}},
    "best_of_n": {"align": {**TRAINING, "algorithm": "best_of_n", "num_generations": 2, "eval_prompts": 2, **PAID}},
    "grpo": {"align": {**SAMPLING, "algorithm": "grpo", "num_generations": 2}},
    "rloo": {"align": {**SAMPLING, "algorithm": "rloo", "num_generations": 2}},
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
def test_two_processes_take_the_steps_of_one(
    below: Path, campaign: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    made = campaign(tmp_path, **STAGES[name])
    stage = next(iter(STAGES[name]))
    for run in ("one", "two"):
        for parent in BELOW[: BELOW.index(stage) if stage in BELOW else None]:
            folder = runs.DIRECTORIES[parent]
            shutil.copytree(below / folder, tmp_path / run / folder)
    one = load_campaign(made.source, [f"run_dir={tmp_path / 'one'}"]).stages[stage]
    load_object(one.run)(one)
    on_processes(2, made.source, stage, tmp_path / "process", f"run_dir={tmp_path / 'two'}")

    folders = [runs.stage_dir(tmp_path / run, stage) for run in ("one", "two")]
    of_one, of_two = (steps(folder) for folder in folders)
    assert [row["step"] for row in of_two] == [row["step"] for row in of_one]
    for key in ("loss", "grad_norm"):
        assert [row[key] for row in of_two] == pytest.approx([row[key] for row in of_one], rel=1e-3, abs=1e-4), key
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in folders]
    assert names[0] == names[1], "each file once, and none of a process's own"
    weights = (
        [
            load_file(folder / "adapter_model.safetensors")
            for folder in (folders[0] / "adapter", tmp_path / "process0", tmp_path / "process1")
        ]
        if (folders[0] / "adapter").exists()
        else []
    )
    for other in weights[1:]:
        for key, weight in weights[0].items():
            torch.testing.assert_close(other[key], weight, rtol=1e-3, atol=1e-4)
    manifest = json.loads((folders[1] / "manifest.json").read_text())
    assert manifest["processes"] == 2


def steps(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss" in row]


# ---- What starts them -------------------------------------------------------------------------------------------


def trueup(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "trueup", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_run_trains_on_two_processes_and_goes_on_on_one_when_one_of_them_is_killed(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    many = {**TRAINING, "num_train_epochs": 40, "save_steps": 2}
    made = campaign(tmp_path, sft=many, launch="ddp", processes=2)
    directory = runs.stage_dir(made.run_dir, "sft")
    running = trueup("sft", made.source)
    wait_for(lambda: list(directory.glob("checkpoint-*/trainer_state.json")), running)
    ranks = {child.environ()["RANK"]: child for child in processes_of(running)}
    assert sorted(ranks) == ["0", "1"]
    ranks["1"].kill()
    said, complaint = running.communicate(timeout=120)
    assert running.returncode == 2
    assert "sft      run    not run yet; ddp on 2 processes" in said
    assert re.search(r"sft: process 1 of 2 was killed by SIGKILL \(out of memory\?\).* The same command", complaint)
    assert "Traceback" not in complaint
    assert not list(Path(tempfile.gettempdir()).glob("trueup-campaign-*")), "the campaign's keys may be secret"

    alone = load_campaign(made.source, ["launch=null", "processes=null"])
    assert [step.action for step in plan(alone, "sft")] == ["resume"]
    reached = steps(directory)
    load_object(alone.stages["sft"].run)(alone.stages["sft"])
    of_both = steps(directory)
    assert [row["step"] for row in of_both] == list(range(1, len(of_both) + 1)) and len(of_both) > len(reached) > 1
    whole = campaign(tmp_path, sft=many, run_dir=str(tmp_path / "whole")).stages["sft"]
    load_object(whole.run)(whole)
    of_one = steps(runs.stage_dir(tmp_path / "whole", "sft"))
    assert [row["loss"] for row in of_both] == pytest.approx([row["loss"] for row in of_one], rel=0.02, abs=0.02)


def wait_for(there: Callable[[], object], running: subprocess.Popen[str]) -> None:
    for _ in range(1200):
        if there():
            return
        assert running.poll() is None, running.communicate()
        time.sleep(0.1)
    raise AssertionError("it did not begin in two minutes")


def processes_of(running: subprocess.Popen[str]) -> list[psutil.Process]:
    """Those that train."""
    children = psutil.Process(running.pid).children(recursive=True)
    return [child for child in children if "RANK" in child.environ()]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"processes": 2}, r"processes: only launch reads it"),
        ({"launch": "ddp", "processes": 1}, r"processes: .*greater than or equal to 2"),
        ({"launch": "fsdp"}, r"launch: .*ddp"),
        ({"launch": "ddp", "processes": 3}, r"sft\.train_batch_size: 4 rows cannot be shared by 3 processes"),
        (
            {"launch": "ddp", "processes": 2, "reward": {"per_device_train_batch_size": 4}},
            r"reward\.per_device_train_batch_size: 4 does not divide train_batch_size 2",
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
    with pytest.raises(ConfigError, match=r"ddp needs several processes, and there is (no|one) GPU: leave launch out"):
        number_of(campaign(tmp_path, launch="ddp"))


def test_the_same_results_whatever_starts_them_so_no_stage_is_stale(
    campaign: Callable[..., Any], tmp_path: Path
) -> None:
    one, two = (campaign(tmp_path, **keys) for keys in ({}, {"launch": "ddp", "processes": 2}))
    assert all(one.stages[name].identity() == two.stages[name].identity() for name in one.stages)
    assert [name for name in two.stages if two.launched(name)] == ["sft", "reward", "align"]
