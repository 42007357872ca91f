"""The demo from end to end on the real model, shortened: each stage, the verdict, and nothing to do twice."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = [
    "sft.max_steps=20",
    "sample.max_prompts=96",
    "reward.max_steps=4",
    "align.max_steps=8",
]


Ran = subprocess.CompletedProcess[str]
Demo = tuple[Callable[..., Ran], Path, list[str], Ran]
"""Runs a command of ours; the run directory; what was set; the first run."""


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """A shortened run of configs/demo.yaml; returns a function that calls a command on it."""
    run_dir = tmp_path_factory.mktemp("demo") / "run"

    def trueup(*arguments: str) -> Ran:
        return subprocess.run(
            [sys.executable, "-m", "trueup", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=2700
        )

    overrides = [f"--set={assignment}" for assignment in [f"run_dir={run_dir}", *SHORT]]
    made = trueup("run", "configs/demo.yaml", *overrides)
    assert made.returncode == 0, made.stdout + made.stderr
    return trueup, run_dir, overrides, made


@pytest.mark.slow
def test_the_demo_reaches_a_verdict_with_an_interval_and_a_report(demo: Demo) -> None:
    _, run_dir, _, made = demo
    report = json.loads((run_dir / "compare/report.json").read_text())
    judge = report["judges"]["rubric"]["win_rate"]
    assert 0 <= judge["ci_low"] <= judge["value"] <= judge["ci_high"] <= 1 and judge["n"] >= 10
    assert report["verdict"]["message"] in made.stdout
    assert "simulated" in (run_dir / "compare/report.html").read_text()


@pytest.mark.slow
def test_a_finished_demo_verifies_and_has_nothing_left_to_do(demo: Demo) -> None:
    trueup, run_dir, overrides, _ = demo
    assert trueup("verify", str(run_dir)).returncode == 0
    again = trueup("run", "configs/demo.yaml", *overrides, "--plan")
    assert again.stdout.count("keep") == 6, again.stdout


@pytest.mark.slow
def test_no_heldout_prompt_was_trained_on_by_any_stage(demo: Demo) -> None:
    from trueup.config import SplitConfig
    from trueup.data.records import Message
    from trueup.data.split import is_heldout

    _, run_dir, _, _ = demo
    compared = [json.loads(line) for line in (run_dir / "compare/samples.jsonl").read_text().splitlines()]
    split = SplitConfig(heldout_fraction=0.25)
    assert compared and all(is_heldout([Message(**m) for m in row["prompt"]], split) for row in compared)


@pytest.mark.slow
def test_an_alignment_that_does_nothing_gives_no_detectable_change(demo: Demo) -> None:
    trueup, run_dir, overrides, _ = demo
    control = trueup("run", "configs/demo.yaml", *overrides, "--set=align.dpo.learning_rate=0")
    assert control.returncode == 0, control.stdout + control.stderr
    assert json.loads((run_dir / "compare/report.json").read_text())["verdict"]["code"] == "no_detectable_change"
    # Only what lies behind the changed key ran again.
    assert control.stdout.count("keep") == 4 and "align.learning_rate" not in control.stdout.split("sample")[0]


@pytest.mark.slow
def test_a_changed_byte_in_the_finished_demo_is_found(demo: Demo) -> None:
    trueup, run_dir, _, _ = demo
    weights = run_dir / "sft/model/model.safetensors"
    with weights.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)
        file.seek(1_000_000)
        file.write(bytes([byte[0] ^ 1]))
    found = trueup("verify", str(run_dir))
    assert found.returncode == 1 and "model.safetensors: changed since sft wrote it" in found.stdout
