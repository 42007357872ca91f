"""SimPO: its loss against one of our own, where it starts, what it leaves out, and that it learns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rlhf.align.preferences.reference import compute_reference_logps
from rlhf.align.preferences.simpo import columns_of
from trueup import runs
from trueup.data.records import Dropped, Preference, read_rows
from trueup.data.split import is_heldout
from trueup.models import loading
from trueup.training.pairs import encode_pairs


@pytest.mark.parametrize(("beta", "target_margin"), [(2.0, 1.0), (0.5, 0.0)])
def test_the_first_loss_is_what_the_sft_policy_makes_of_the_labels(
    aligned: Callable[..., Any], metrics: Callable[..., Any], beta: float, target_margin: float
) -> None:
    made, directory = aligned(
        algorithm="simpo", beta=beta, target_margin=target_margin, max_steps=1, train_batch_size=12, learning_rate=1e-3
    )
    sft, label = (runs.open_stage(made.run_dir, name) for name in ("sft", "label"))
    policy = loading.load_policy(sft.dir / "model", made.config.model)
    pairs = [
        pair
        for pair in read_rows(label.dir / "preferences.jsonl", Preference)
        if not is_heldout(pair.prompt, made.config.split)
    ]
    pairs, rows = encode_pairs(pairs, policy.tokenizer, 96, Dropped())
    losses = []
    for row, (chosen, rejected) in zip(rows, compute_reference_logps(policy, sft, pairs, rows), strict=True):
        x = beta * (chosen / len(row.chosen_ids) - rejected / len(row.rejected_ids)) - target_margin
        losses.append(math.log1p(math.exp(-x)))
    (first,) = metrics(directory)
    assert len(losses) == len(rows) <= 12
    assert first["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


def test_it_learns_which_answer_is_better_on_held_out_prompts_too(aligned: Callable[..., Any]) -> None:
    _, directory = aligned(algorithm="simpo", max_steps=12)
    report = json.loads((directory / "report.json").read_text())
    assert report["algorithm"] == "simpo" and report["margin_nats"] > 0.5
    assert report["heldout_accuracy"]["value"] == 1.0 and report["schedule"]["beta"] == 2.0


def test_a_policy_that_is_not_the_sft_policy_at_step_0_stops_the_stage(
    aligned: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from trl.experimental.cpo import CPOTrainer

    begin = CPOTrainer.train

    def moved(self: Any, *args: Any, **keys: Any) -> Any:
        with torch.no_grad():
            for name, weight in self.model.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.1)
        return begin(self, *args, **keys)

    monkeypatch.setattr(CPOTrainer, "train", moved)
    with pytest.raises(AssertionError, match="at step 0 policy and reference differ"):
        aligned(algorithm="simpo")


def test_a_row_for_trl_labels_the_answers_alone_and_adds_no_token() -> None:
    from trueup.training.pairs import EncodedPair

    row = columns_of(EncodedPair([1, 2], [3, 4, 0], [5]), (-1.0, -2.0))
    assert (row["chosen_input_ids"], row["chosen_labels"]) == ([1, 2, 3, 4, 0], [-100, -100, 3, 4, 0])
    assert (row["rejected_input_ids"], row["rejected_labels"]) == ([1, 2, 5], [-100, -100, 5])
    assert (row["ref_chosen_logps"], row["ref_rejected_logps"]) == (-1.0, -2.0)
