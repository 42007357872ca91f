"""Where in a model the labels can be read: held-out accuracy of a probe by depth and pooling.

    python benchmarks/probe_places.py runs/demo
    python benchmarks/probe_places.py runs/demo --pairs extremes

The run has a finished sft and label stage; its hidden states are those of its SFT policy, and its pairs those of
`reward` in configs/demo.yaml, all of each ranking unless said otherwise. Prints a row a depth: the share of held-out
pairs that a probe orders as the labels do, with its interval over prompts, for each pooling.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reward.card.shares import half_for_ties, over_prompts
from reward.config import RewardConfig
from reward.hidden import POOLINGS, Features, Place, depths, read_features
from reward.probe import fit_probe
from trueup.campaign import load_campaign
from trueup.data.pairs import choose_pairs
from trueup.data.records import Dropped, Preference, read_rows
from trueup.data.split import is_heldout
from trueup.models import loading
from trueup.pages.wording import interval
from trueup.training.pairs import encode_pairs

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run directory with a finished sft and label stage")
    parser.add_argument("--pairs", choices=["all", "extremes", "nested"], default="all")
    options = parser.parse_args()
    config = load_campaign(DEMO, [f"run_dir={options.run}"]).stages["reward"]
    assert isinstance(config, RewardConfig)
    model = loading.new_reward_model(options.run / "sft" / "model", config.model)
    labelled = read_rows(options.run / "labels" / "preferences.jsonl", Preference)
    chosen = choose_pairs(labelled, options.pairs)
    train, rows = encode_pairs(
        [pair for pair in chosen if not is_heldout(pair.prompt, config.split)], model.tokenizer, 256, Dropped()
    )
    heldout, heldout_rows = encode_pairs(
        [pair for pair in labelled if is_heldout(pair.prompt, config.split)], model.tokenizer, 256, Dropped()
    )
    known, examined = (read_features(model, part, depths(model.model)) for part in (rows, heldout_rows))
    print("| layers | " + " | ".join(POOLINGS) + " |\n" + "|---" * (1 + len(POOLINGS)) + "|")
    for layers in depths(model.model):
        cells = [accuracy(Place(layers, pooling), known, train, examined, heldout) for pooling in POOLINGS]
        print(f"| {layers} | {' | '.join(cells)} |", flush=True)


def accuracy(
    place: Place, known: Features, train: list[Preference], examined: Features, heldout: list[Preference]
) -> str:
    """Of a probe at the place, on the held-out pairs, with its interval."""
    probe = fit_probe({place: known[place]}, [pair.prompt_id for pair in train], seed=0)
    right = [half_for_ties(chosen - rejected) for chosen, rejected in probe.scores(examined)]
    return interval(over_prompts(heldout, right).estimate())


if __name__ == "__main__":
    main()
