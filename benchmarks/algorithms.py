"""What each algorithm buys from the same SFT policy and reward model, and in what time.

    trueup run configs/demo.yaml                   first: the stages that all share, and DPO
    python benchmarks/algorithms.py                PPO, RLOO and GRPO for 12 rollouts each
    python benchmarks/algorithms.py --algorithms ppo --rollouts 12 36 --seeds 0 1 2
    python benchmarks/algorithms.py --algorithms best_of_n simpo
    python benchmarks/algorithms.py --run runs/heads --set reward.ensemble=3 align.reward_caution=1

Each alignment works in a copy of the run (runs/demo-ppo-12-0, ...) that keeps the stages before it, and is compared as
the campaign says. Prints for each the time of its align stage, how often it wins against the SFT policy on held-out
prompts (by the judge that decides, and by the reward model that paid), KL, length and what the verdict is; beside them
the run's own algorithm and the best of n SFT answers by the reward model. `--seeds` are of the alignment alone; a line
has the win rates over all of them, each prompt with the outcomes of every seed. A run that collapsed is one that the
judge that decides sees lose; they are counted. What is finished is read, not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rlhf.align.config import ALGORITHMS
from rlhf.align.config.online import OnlineConfig
from rlhf.compare.schema import CompareReport, PromptComparison
from trueup import runs
from trueup.artifacts.reports import number
from trueup.campaign import load_campaign
from trueup.data.records import read_rows
from trueup.pages.wording import interval
from trueup.statistics import win_rates

WIDTH = 40
"""Of the first column."""
SHARED = ("sft", "candidates", "labels", "reward")


class Alignment(NamedTuple):
    """An algorithm, with what differs from the campaign file."""

    algorithm: str
    rollouts: int | None
    """None for an algorithm without rollouts."""
    overrides: list[str]

    def __str__(self) -> str:
        rollouts = [] if self.rollouts is None else [f"{self.rollouts} rollouts"]
        return ", ".join([self.algorithm, *rollouts, *self.overrides])


def align(run: Path, config: Path, wanted: Alignment, seed: int) -> Path:
    """A copy of `run`, aligned anew and compared."""
    parts = [run.name, wanted.algorithm, wanted.rollouts, *wanted.overrides, seed]
    folder = run.with_name("-".join(str(part) for part in parts if part is not None))
    for name in SHARED:
        if not (folder / name).exists():
            shutil.copytree(run / name, folder / name)
    overrides = [f"align.algorithm={wanted.algorithm}", f"align.seed={seed}", *wanted.overrides, f"run_dir={folder}"]
    if wanted.rollouts is not None:
        online = load_campaign(config, overrides).stages["align"]
        assert isinstance(online, OnlineConfig)
        overrides.append(f"align.{wanted.algorithm}.max_steps={wanted.rollouts * online.updates_per_rollout}")
    command = [sys.executable, "-m", "trueup", "run", str(config)]
    for override in overrides:
        command += ["--set", override]
    log = folder / "benchmark.txt"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{log}: {log.read_text(encoding='utf-8').strip().splitlines()[-1]}")
    return folder


def row(folder: Path, name: str) -> str:
    """One line of the table, of a finished comparison."""
    report = compared(folder)
    rates = [interval(judge.win_rate) for judge in report.judges.values()]
    measures = report.policies_compared.measures
    grown = measures["aligned"].length_tokens / measures["sft"].length_tokens
    seconds = runs.open_stage(folder, "align").manifest.duration_s
    return (
        f"{name:<{WIDTH}}{seconds:>6.0f} s{''.join(f'{rate:>22}' for rate in rates)}{number(report.kl_nats):>7.2f}"
        f"{grown:>8.2f}  {report.verdict.outcome}"
    )


def over_seeds(folders: Sequence[Path], name: str) -> str:
    """One line of the win rates over the prompts, each with the outcomes of every seed."""
    columns = []
    for judge in compared(folders[0]).judges:
        outcomes: dict[str, list[np.ndarray]] = {}
        for folder in folders:
            for one in read_rows(folder / "compare" / "samples.jsonl", PromptComparison):
                sides = ([answer.scores[judge] for answer in side] for side in (one.sft, one.aligned))
                outcomes.setdefault(one.prompt_id, []).append(win_rates.outcomes(*sides).ravel())
        rate = win_rates.win_rate([np.concatenate(each) for each in outcomes.values()])
        columns.append(f"{interval(rate.interval.estimate()):>22}")
    return f"{name}: {len(folders)} seeds".ljust(WIDTH + 8) + "".join(columns)


def best_of_n(folder: Path) -> str:
    """The best of n SFT answers, against one of them; empty if the comparison draws one answer to a prompt."""
    policies = compared(folder).policies_compared
    if not policies.best_of:
        return ""
    rates = [interval(pair.win_rate) for pair in policies.pairs if (pair.a, pair.b) == ("sft", "best_of_n")]
    return f"{f'best of {policies.best_of}':<{WIDTH + 8}}{''.join(f'{rate:>22}' for rate in rates)}"


def has_lost(folder: Path) -> bool:
    """Whether the aligned policy loses by the judge that decides."""
    high = next(iter(compared(folder).judges.values())).win_rate.ci_high
    return high is not None and high < 0.5


def compared(folder: Path) -> CompareReport:
    return runs.open_stage(folder, "compare").report(CompareReport)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--algorithms", nargs="+", choices=list(ALGORITHMS), default=["ppo", "rloo", "grpo"])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="overrides")
    arguments = parser.parse_args()
    judges = compared(arguments.run).judges
    print(f"{'':<{WIDTH}}{'align':>8}{''.join(f'{judge:>22}' for judge in judges)}{'KL':>7}{'longer':>8}  verdict")
    print(row(arguments.run, "the run's own"), best_of_n(arguments.run), sep="\n", flush=True)
    for wanted in (
        Alignment(algorithm, rollouts, arguments.overrides)
        for algorithm in arguments.algorithms
        for rollouts in (arguments.rollouts if issubclass(ALGORITHMS[algorithm], OnlineConfig) else [None])
    ):
        folders = []
        for seed in arguments.seeds:
            folders.append(align(arguments.run, arguments.config, wanted, seed))
            print(row(folders[-1], f"{wanted}, seed {seed}"), flush=True)
        collapsed = sum(map(has_lost, folders))
        print(over_seeds(folders, str(wanted)), f"  collapsed {collapsed} of {len(folders)}", sep="", flush=True)


if __name__ == "__main__":
    main()
