"""Rounds against one pass with the same number of labels: 3 x 100 against 1 x 300, by the demo's rubric.

    python benchmarks/rounds.py                                   the demo's keys, three seeds
    python benchmarks/rounds.py --seeds 0 --set sample.max_prompts=120 --labels 30 --keep runs/rounds

For each seed one campaign labels all in one round and one in several. Both have the same SFT policy and the same first
answers; the last policy of each answers the same held-out prompts with the same random numbers, and the rubric judges.
The seed draws the prompts that are labelled, the answers, the order of training and the comparison's random numbers.

Prints a row a seed: both win rates against the SFT policy, and how often several rounds win over one pass. The last row
has the same over all seeds, with intervals over prompts, each with the answers of every seed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from rlhf.compare.schema import PromptComparison
from trueup import runs
from trueup.artifacts.reports import Estimate
from trueup.campaign import Campaign, load_campaign
from trueup.commandline.running import run_to
from trueup.data.records import read_rows
from trueup.stages import address
from trueup.statistics import win_rates

REPOSITORY = Path(__file__).parents[1]
ONE_PASS = "one-pass"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "demo.yaml", help="simulated labels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--labels", type=int, default=100, help="labels of each round")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in; the same command continues there")
    options = parser.parse_args()
    every: dict[str, list[Tables]] = {}
    columns = f"one pass of {options.rounds * options.labels} | {options.rounds} rounds of {options.labels}"
    print(f"| seed | {columns} | rounds over one pass |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for seed in options.seeds:
            folder = (options.keep or Path(temporary)) / f"seed-{seed}"
            once = campaign(options, folder / ONE_PASS, seed, rounds=1, labels=options.rounds * options.labels)
            run_to(once, "align")
            often = campaign(options, folder / "rounds", seed, options.rounds, options.labels, once.run_dir)
            compared = address(options.rounds, "compare")  # those of the rounds before it are not needed
            run_to(often, compared)
            rows = read_rows(runs.open_stage(often.run_dir, compared).dir / "samples.jsonl", PromptComparison)
            for row in rows:
                every.setdefault(row.prompt_id, []).append(tables(row))
            print(line(str(seed), [[tables(row)] for row in rows]), flush=True)
    print(line("all", list(every.values())))


def campaign(
    options: argparse.Namespace, folder: Path, seed: int, rounds: int, labels: int, beside: Path | None = None
) -> Campaign:
    """A campaign of so many rounds; its SFT policy and first answers are those of the run `beside` it, which the last
    comparison has among its policies."""
    folder.mkdir(parents=True, exist_ok=True)
    values: dict[str, Any] = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    values |= {"name": folder.name, "run_dir": str(folder / "run"), "seed": seed}
    values |= {"rounds": rounds, "labels_per_round": labels}
    compare = {**values.get("compare", {}), "judges": ["rubric"], "greedy": False, "step_prompts": 0}
    values["compare"] = {**compare, **({"others": {ONE_PASS: str(beside)}} if beside else {})}
    for name in ("sft", "candidates") if beside else ():
        if beside and not (folder / "run" / name).exists():
            shutil.copytree(beside / name, folder / "run" / name)
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_campaign(file, options.overrides)


class Tables(NamedTuple):
    """The outcomes of a prompt's answers, of one policy against those of another."""

    once: np.ndarray
    """The one pass against the SFT policy."""
    often: np.ndarray
    """The last round against the SFT policy."""
    often_over_once: np.ndarray


def tables(row: PromptComparison) -> Tables:
    sft, once, often = ([one.scores["rubric"] for one in side] for side in (row.sft, row.others[ONE_PASS], row.aligned))
    return Tables(*(win_rates.outcomes(*sides) for sides in ((sft, once), (sft, often), (once, often))))


def line(name: str, prompts: Sequence[Sequence[Tables]]) -> str:
    """A row of the table: win rates over prompts, each with the outcomes of one seed or of several."""
    columns = [
        win_rates.win_rate([np.concatenate([each[column].ravel() for each in seeds]) for seeds in prompts])
        for column in range(len(Tables._fields))
    ]
    return f"| {name} | {' | '.join(shown(rate.interval.estimate()) for rate in columns)} |"


def shown(rate: Estimate) -> str:
    value, low, high = (100 * (each or 0.0) for each in (rate.value, rate.ci_low, rate.ci_high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    main()
