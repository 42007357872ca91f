"""PPO on two processes (gloo): together they take the steps that one takes, and one goes on from where two were."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import warm

import rlhf.align.ppo.stage
from trueup import runs
from trueup.models import loading

REWARD = """
def counts_e(prompts, completions, **columns):
    return [said[-1]["content"].count("e") + 0.1 * len(said[-1]["content"]) for said in completions]
"""
# What each process does: the whole stage.
PROCESS = """
import os, signal, sys
from pathlib import Path
from rlhf.align.ppo.trainer import PPOTrainer
from trueup.campaign import load_campaign
from trueup.stages import load_object

save, kill_at = PPOTrainer._save_checkpoint, int(sys.argv[2])

def saved(self, model, trial):
    save(self, model, trial)
    if self.state.global_step == kill_at:
        self.accelerator.wait_for_everyone()
        os.kill(os.getpid(), signal.SIGKILL)

PPOTrainer._save_checkpoint = saved
stage = load_campaign(Path(sys.argv[1]), [f"run_dir={sys.argv[3]}"]).stages["align"]
load_object(stage.run)(stage)
"""


@pytest.fixture
def made(campaign: Callable[..., Any], tmp_path: Path) -> Any:
    """A campaign with an SFT stage, in run/ and two/."""
    (tmp_path / "rewards.py").write_text(REWARD)
    align = {
        "algorithm": "ppo",
        "prompts": "prompts.jsonl",
        "rewards": {"rewards.py:counts_e": 1.0},
        "rollout_batch_size": 8,
        "train_batch_size": 8,  # the rollout: each process draws its minibatches from its own rows
        "num_ppo_epochs": 2,
        "max_new_tokens": 8,
        "max_steps": 6,
        "eval_prompts": 2,
        "keep_steps": 0,
        "learning_rate": 1e-3,
        "kl_target": 1.0,
        "kl_horizon": 50,
    }
    made = campaign(tmp_path, align=align)
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    shutil.copytree(made.run_dir, tmp_path / "two")
    return made


def on_two_processes(made: Any, tmp_path: Path, kill_at: int = -1) -> list[subprocess.CompletedProcess[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    arguments = (str(made.source), str(kill_at), str(tmp_path / "two"))
    started = [
        warm.start(PROCESS, *arguments, said=tmp_path / f"said{rank}", **common, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    return [wait(280) for wait in started]


def metrics(directory: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


KEYS = ("objective/scores", "objective/kl", "answers/mean_length", "grad_norm", "val/explained_variance", "eval/reward")


def test_two_processes_take_the_steps_of_one(made: Any, tmp_path: Path) -> None:
    for process in on_two_processes(made, tmp_path):
        assert process.returncode == 0, process.stderr
    one = rlhf.align.ppo.stage.run(made.stages["align"])
    two = runs.stage_dir(tmp_path / "two", "align")
    for key in KEYS:
        assert metrics(two, key) == pytest.approx(metrics(one, key), rel=1e-3, abs=1e-3), key


def test_one_process_goes_on_where_two_were_killed(made: Any, tmp_path: Path) -> None:
    killed, other = sorted(on_two_processes(made, tmp_path, kill_at=4), key=lambda process: process.returncode)
    # The first to die may take the other with it, out of the barrier that both had reached.
    assert killed.returncode == -signal.SIGKILL and other.returncode != 0, killed.stderr + other.stderr
    whole = rlhf.align.ppo.stage.run(made.stages["align"])
    rest = rlhf.align.ppo.stage.run(made.stages["align"].model_copy(update={"run_dir": tmp_path / "two"}))
    for key in KEYS:
        assert metrics(rest, key) == pytest.approx(metrics(whole, key), rel=1e-3, abs=1e-3), key
