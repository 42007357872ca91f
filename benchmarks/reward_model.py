"""What labels are worth to a reward model: its accuracy on held-out prompts by the share of the labels that it learns.

    python benchmarks/reward_model.py runs/demo                                     a quarter, half and all
    python benchmarks/reward_model.py runs/demo --shares 1 --set reward.num_train_epochs=1

The run has a finished label stage. Held-out pairs are all of its held-out pairs; the training prompts of a share are
drawn by the seed, the smaller share within the larger. Everything of `reward` that is not on the command line is that
of configs/demo.yaml. Prints a row a training: accuracy by prompt with its interval, that of the probe, which trains
nothing, and the difference of the two.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

import yaml

from reward.config import RewardConfig
from reward.report import RewardReport
from trueup import runs
from trueup.artifacts.reports import Estimate
from trueup.campaign import Campaign, load_campaign
from trueup.data.records import Ranking, read_rows, write_rows
from trueup.data.split import is_heldout
from trueup.pages.wording import interval
from trueup.stages import load_object

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with a finished sft and label stage")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 1.0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    print("| share | prompts | pairs | accuracy | probe | ahead of the probe | minutes |\n" + "|---" * 7 + "|")
    for share in options.shares:
        with tempfile.TemporaryDirectory() as folder:
            campaign = prepare(options, Path(folder), share)
            load_object(campaign.stages["label"].run)(campaign.stages["label"])
            began = time.time()
            load_object(campaign.stages["reward"].run)(campaign.stages["reward"])
            print(row(campaign, share, (time.time() - began) / 60), flush=True)


def prepare(options: argparse.Namespace, folder: Path, share: float) -> Campaign:
    """A campaign whose SFT policy and labels are those of the run, with a share of the training prompts."""
    demo = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    for name in ("sft", "candidates"):
        shutil.copytree(options.run / name, folder / "run" / name)
    demo |= {
        "run_dir": str(folder / "run"),
        "seed": options.seed,
        "label": {"source": "import", "path": "labels.jsonl"},
    }
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(demo, sort_keys=False), encoding="utf-8")
    (folder / "labels.jsonl").write_text("", encoding="utf-8")
    config = load_campaign(file, options.overrides).stages["reward"]
    assert isinstance(config, RewardConfig)
    labels = read_rows(options.run / "labels" / "rankings.jsonl", Ranking)  # whole: grades, ties, what was found bad
    heldout = [label for label in labels if is_heldout(label.prompt, config.split)]
    train = [label for label in labels if not is_heldout(label.prompt, config.split)]
    write_rows(folder / "labels.jsonl", [*share_of(train, share, options.seed), *heldout])
    return load_campaign(file, options.overrides)


def share_of(train: list[Ranking], share: float, seed: int) -> list[Ranking]:
    """The labels of a share of the prompts; a larger share of the same seed holds them all."""
    prompts = sorted({label.prompt_id for label in train})
    random.Random(seed).shuffle(prompts)
    chosen = set(prompts[: max(1, round(share * len(prompts)))])
    return [label for label in train if label.prompt_id in chosen]


def row(campaign: Campaign, share: float, minutes: float) -> str:
    report = runs.open_stage(campaign.run_dir, "reward").report(RewardReport)
    assert report.accuracy is not None and report.probe is not None
    prompts = len(runs.open_stage(campaign.run_dir, "reward").trained_prompts)
    cells = [f"{share:.0%}", prompts, report.pairs.train, interval(report.accuracy), interval(report.probe)]
    cells += [points(report.probe.difference), f"{minutes:.1f}"]
    return f"| {' | '.join(map(str, cells))} |"


def points(difference: Estimate) -> str:
    assert difference.value is not None and difference.ci_low is not None and difference.ci_high is not None
    return f"{100 * difference.value:+.1f} [{100 * difference.ci_low:+.1f}, {100 * difference.ci_high:+.1f}]"


if __name__ == "__main__":
    main()
