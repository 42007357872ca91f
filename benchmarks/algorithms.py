"""What each algorithm buys from the same SFT policy and reward model, and in what time.

    trueup run configs/demo.yaml                   first: the stages that all share, and DPO
    python benchmarks/algorithms.py                PPO, RLOO and GRPO for 12 rollouts each
    python benchmarks/algorithms.py --algorithms ppo --rollouts 12 36 --seeds 0 1 2

Each alignment works in a copy of the run (runs/demo-ppo-12-0, ...) that keeps the stages before it, and is compared as
the campaign says. Prints for each the time of its align stage, how often it wins against the SFT policy on held-out
prompts (by the judge that decides, and by the reward model that paid), KL, length and what the verdict is; beside them
DPO and the best of n SFT answers by the reward model. `--seeds` are of the alignment alone. A run that collapsed is one
that the judge that decides sees lose; they are counted. What is finished is read, not repeated.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from rlhf.align.config.online import OnlineConfig
from rlhf.compare.schema import CompareReport
from trueup import runs
from trueup.artifacts.reports import number
from trueup.campaign import load_campaign
from trueup.pages.wording import interval

SHARED = ("sft", "candidates", "labels", "reward")


def align(run: Path, config: Path, algorithm: str, rollouts: int, seed: int) -> Path:
    """A copy of `run`, aligned anew and compared."""
    folder = run.with_name(f"{run.name}-{algorithm}-{rollouts}-{seed}")
    for name in SHARED:
        if not (folder / name).exists():
            shutil.copytree(run / name, folder / name)
    overrides = [f"run_dir={folder}", f"align.algorithm={algorithm}", f"align.seed={seed}"]
    online = load_campaign(config, overrides).stages["align"]
    assert isinstance(online, OnlineConfig)
    overrides.append(f"align.{algorithm}.max_steps={rollouts * online.updates_per_rollout}")
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
        f"{name:<26}{seconds:>6.0f} s{''.join(f'{rate:>22}' for rate in rates)}{number(report.kl_nats):>7.2f}"
        f"{grown:>8.2f}  {report.verdict.outcome}"
    )


def best_of_n(folder: Path) -> str:
    """The best of n SFT answers, against one of them; empty if the comparison draws one answer to a prompt."""
    policies = compared(folder).policies_compared
    if not policies.best_of:
        return ""
    rates = [interval(pair.win_rate) for pair in policies.pairs if (pair.a, pair.b) == ("sft", "best_of_n")]
    return f"{f'best of {policies.best_of}':<34}{''.join(f'{rate:>22}' for rate in rates)}"


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
    parser.add_argument("--algorithms", nargs="+", choices=("ppo", "rloo", "grpo"), default=["ppo", "rloo", "grpo"])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    judges = compared(arguments.run).judges
    print(f"{'':<26}{'align':>8}{''.join(f'{judge:>22}' for judge in judges)}{'KL':>7}{'longer':>8}  verdict")
    print(row(arguments.run, "dpo"), best_of_n(arguments.run), sep="\n", flush=True)
    for algorithm in arguments.algorithms:
        for rollouts in arguments.rollouts:
            collapsed = 0
            for seed in arguments.seeds:
                folder = align(arguments.run, arguments.config, algorithm, rollouts, seed)
                print(row(folder, f"{algorithm}, {rollouts} rollouts, seed {seed}"), flush=True)
                collapsed += has_lost(folder)
            print(f"{algorithm}, {rollouts} rollouts: collapsed {collapsed} of {len(arguments.seeds)}", flush=True)


if __name__ == "__main__":
    main()
