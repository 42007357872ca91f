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
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from trueup.campaign import load_campaign

SHARED = ("sft", "candidates", "labels", "reward")


def align(run: Path, config: Path, algorithm: str, rollouts: int, seed: int) -> Path:
    """A copy of `run`, aligned anew and compared."""
    folder = run.with_name(f"{run.name}-{algorithm}-{rollouts}-{seed}")
    for name in SHARED:
        if not (folder / name).exists():
            shutil.copytree(run / name, folder / name)
    overrides = [f"run_dir={folder}", f"align.algorithm={algorithm}", f"align.seed={seed}"]
    updates = load_campaign(config, overrides).stages["align"].updates_per_rollout  # type: ignore[attr-defined]
    overrides.append(f"align.{algorithm}.max_steps={rollouts * updates}")
    command = [sys.executable, "-m", "trueup", "run", str(config)]
    for override in overrides:
        command += ["--set", override]
    with (folder / "benchmark.txt").open("a", encoding="utf-8") as log:
        subprocess.run(command, check=True, stdout=log, stderr=subprocess.STDOUT)
    return folder


def row(folder: Path, name: str) -> str:
    """One line of the table, of a finished comparison."""
    report = read(folder / "compare/report.json")
    measures = report["policies_compared"]["measures"]
    rates = [interval(judge["win_rate"]) for judge in report["judges"].values()]
    grown = measures["aligned"]["length_tokens"] / measures["sft"]["length_tokens"]
    seconds = read(folder / "align/manifest.json")["duration_s"]
    return (
        f"{name:<26}{seconds:>6.0f} s{''.join(f'{rate:>20}' for rate in rates)}{report['kl_nats']['value']:>7.2f}"
        f"{grown:>8.2f}  {report['verdict']['outcome']}"
    )


def best_of_n(folder: Path) -> str:
    """The best of n SFT answers, against one of them."""
    compared = read(folder / "compare/report.json")["policies_compared"]
    rates = [interval(pair["win_rate"]) for pair in compared["pairs"] if (pair["a"], pair["b"]) == ("sft", "best_of_n")]
    return f"{'best of ' + str(compared['best_of']):<34}{''.join(f'{rate:>20}' for rate in rates)}"


def interval(rate: dict[str, Any]) -> str:
    return f"{100 * rate['value']:.1f} [{100 * rate['ci_low']:.1f}, {100 * rate['ci_high']:.1f}]"


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--config", type=Path, default=Path("configs/demo.yaml"))
    parser.add_argument("--algorithms", nargs="+", choices=("ppo", "rloo", "grpo"), default=["ppo", "rloo", "grpo"])
    parser.add_argument("--rollouts", nargs="+", type=int, default=[12])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments = parser.parse_args()
    judges = list(read(arguments.run / "compare/report.json")["judges"])
    print(f"{'':<26}{'align':>8}{''.join(f'{judge:>20}' for judge in judges)}{'KL':>7}{'longer':>8}  verdict")
    print(row(arguments.run, "dpo"), best_of_n(arguments.run), sep="\n", flush=True)
    for algorithm in arguments.algorithms:
        for rollouts in arguments.rollouts:
            collapsed = 0
            for seed in arguments.seeds:
                folder = align(arguments.run, arguments.config, algorithm, rollouts, seed)
                print(row(folder, f"{algorithm}, {rollouts} rollouts, seed {seed}"), flush=True)
                first = next(iter(read(folder / "compare/report.json")["judges"].values()))
                collapsed += first["win_rate"]["ci_high"] < 0.5
            print(f"{algorithm}, {rollouts} rollouts: collapsed {collapsed} of {len(arguments.seeds)}", flush=True)


if __name__ == "__main__":
    main()
