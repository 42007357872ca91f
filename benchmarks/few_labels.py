"""What a hundred labels are worth: configs/recipes/your-own.yaml's DPO on so many labels by the rubric, compared.

    trueup sample configs/demo.yaml                      SFT policy and candidates, once (trueup sft before)
    python benchmarks/few_labels.py runs/demo            three seeds of 100 labels each
    python benchmarks/few_labels.py runs/demo --set align.learning_rate=5.0e-5 --set align.num_train_epochs=1

A seed draws the prompts, one pair of answers to each, the order of training and the comparison's random numbers. The
rubric labels; a pair that it calls a tie is left out and another prompt takes its place. Held-out prompts are labelled
too, as people do, and are not trained on. Everything of `align` that is not on the command line is its default, but
for the adapter, which is the demo's, so that it runs on a CPU.

Prints a row a seed: pairs trained on, steps, learning rate, what the chosen answers gained on the rejected ones,
accuracy on held-out pairs, and the win rate on held-out prompts with its interval and the verdict.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml

from rlhf.align.schema import DPOReport
from rlhf.compare.schema import CompareReport
from trueup import runs
from trueup.artifacts.reports import Estimate
from trueup.campaign import Campaign, load_campaign
from trueup.data.records import CandidateSet, read_rows, write_rows
from trueup.data.rubric import RUBRICS
from trueup.pages.wording import interval
from trueup.stages import load_object

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with a finished sft and sample stage")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--keep", type=Path, help="folder to keep the runs in")
    options = parser.parse_args()
    candidates = read_rows(options.run / "candidates" / "candidates.jsonl", CandidateSet)
    rows = []
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            folder = (options.keep or Path(temporary)) / f"{options.labels}-labels-{seed}"
            campaign = prepare(options, folder, seed, drawn_labels(candidates, options.labels, seed))
            for stage in ("label", "align", "compare"):
                load_object(campaign.stages[stage].run)(campaign.stages[stage])
            rows.append({"seed": seed, **result(campaign)})
        print(json.dumps(rows[-1], default=Estimate.model_dump), flush=True)
    print("\n" + table(rows))


def drawn_labels(candidates: list[CandidateSet], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` labels by the rubric: one pair of answers of each prompt, in an order drawn by the seed."""
    generator = random.Random(seed)
    labels: list[dict[str, Any]] = []
    rubric = RUBRICS["says-why"]
    for row in generator.sample(candidates, len(candidates)):
        pair = generator.sample(row.candidates, 2)
        scores = [rubric.score(row.prompt, answer.text, answer.finished) for answer in pair]
        if scores[0] == scores[1] or len(labels) == count:
            continue
        chosen, rejected = pair if scores[0] > scores[1] else pair[::-1]
        labels.append(
            {
                "prompt": [message.model_dump() for message in row.prompt],
                "chosen": [{"role": "assistant", "content": chosen.text}],
                "rejected": [{"role": "assistant", "content": rejected.text}],
                "chosen_token_ids": chosen.token_ids,
                "rejected_token_ids": rejected.token_ids,
                "chosen_finished": chosen.finished,
                "rejected_finished": rejected.finished,
            }
        )
    return labels


def prepare(options: argparse.Namespace, folder: Path, seed: int, labels: list[dict[str, Any]]) -> Campaign:
    """A campaign whose SFT policy and candidates are those of the run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("sft", "candidates"):
        shutil.copytree(options.run / name, folder / "run" / name, dirs_exist_ok=True)
    write_rows(folder / "labels.jsonl", labels)
    demo = yaml.safe_load((REPOSITORY / "configs" / "demo.yaml").read_text(encoding="utf-8"))
    recipe = yaml.safe_load((REPOSITORY / "configs" / "recipes" / "your-own.yaml").read_text(encoding="utf-8"))
    align = {**(recipe.get("align") or {}), "max_length": 256, "lora": demo["align"]["lora"]}
    label = {"source": "import", "path": "labels.jsonl"}
    compare = {"judges": ["rubric"], "greedy": False, "step_prompts": 0}
    values = {**demo, "name": "few-labels", "run_dir": str(folder / "run"), "seed": seed}
    values |= {"label": label, "align": align, "compare": compare}
    file = folder / "campaign.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return load_campaign(file, options.overrides)


def result(campaign: Campaign) -> dict[str, Any]:
    aligned, compared = (runs.open_stage(campaign.run_dir, name) for name in ("align", "compare"))
    report, comparison = aligned.report(DPOReport), compared.report(CompareReport)
    verdict = aligned.manifest.verdict
    return {
        "pairs": report.pairs,
        "steps": aligned.manifest.steps,
        "learning_rate": report.schedule.learning_rate,
        "margin_nats": report.margin_nats,
        "heldout_accuracy": report.heldout_accuracy,
        "align": [verdict.status, *(finding.code for finding in verdict.findings)],
        "compare": comparison.verdict.outcome,
        "win_rate": comparison.judges["rubric"].win_rate,
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| seed | pairs | steps | rate | margin, nats | held-out accuracy | win rate by the rubric | verdict |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        accuracy = shown(row["heldout_accuracy"])
        cells = [row["seed"], row["pairs"], row["steps"], f"{row['learning_rate']:g}", f"{row['margin_nats']:.2f}"]
        cells += [accuracy, shown(row["win_rate"]), row["compare"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def shown(figures: Estimate | None) -> str:
    return "none" if figures is None else f"{interval(figures)} of {figures.n}"


if __name__ == "__main__":
    main()
