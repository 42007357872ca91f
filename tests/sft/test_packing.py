"""Packed rows are learnt as rows alone are, by every architecture that is not refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

import architectures
import sft.train
from sft import packing
from sft.tokens import TrainingRows, rows_batch
from trueup import runs
from trueup.check import check
from trueup.errors import ConfigError
from trueup.models import loading
from trueup.models.chat import IGNORED, Encoded
from trueup.models.config import ModelConfig
from trueup.training import loop

READS_ON = {
    "opt": "reads over the boundaries",  # it counts positions itself
    "bloom": "reads over the boundaries",
    "mpt": "reads over the boundaries",
    "gpt_oss": "reads over the boundaries",  # transformers makes its masks without the position ids
    "mamba": "reads over the boundaries",
    "rwkv": "reads over the boundaries",
    "qwen3_5": "can't keep packed sequences apart without",  # its kernels for short convolutions are not installed
    "lfm2": "can't keep packed sequences apart without",
    "falcon_h1": "can't keep packed sequences apart without",
}
"""Architectures that are refused, with what is said of each, in the installed versions without a GPU."""
LENGTHS = [5, 9, 30, 14, 3, 22]


def some_rows(vocabulary: int) -> list[Encoded]:
    """Rows of these lengths, in each of which the last tokens carry loss."""
    draw = torch.Generator().manual_seed(1)
    rows = [torch.randint(vocabulary, (length,), generator=draw).tolist() for length in LENGTHS]
    return [Encoded(ids, [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]) for ids in rows]


def loss_of(model: Any, batches: list[Any]) -> float:
    """Mean loss of the trained tokens of all batches."""
    losses = []
    for batch in batches:
        labels = batch.pop("labels")
        logits = model(**batch, use_cache=False).logits
        losses.append(
            cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
            )[labels[:, 1:].flatten() != IGNORED]
        )
    return torch.cat(losses).mean().item()


@pytest.mark.parametrize("kind", architectures.TINY)
@torch.no_grad()
def test_a_packed_row_has_the_loss_of_its_rows_alone_or_the_architecture_is_refused_by_the_key(
    kind: str, tmp_path: Path
) -> None:
    base = loading.load_base(
        ModelConfig(name=str(architectures.tiny_model(kind, tmp_path / kind)), device="cpu", chat_template="plain")
    )
    base.model.eval()
    collator = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    trainer: Any = SimpleNamespace(model=base.model, data_collator=collator)
    if kind in READS_ON:
        with pytest.raises(ConfigError, match="(?s)^sft.packing: 1 problem.*" + READS_ON[kind]):
            packing.require_no_leak(trainer, base, "sft.packing")
        return
    packing.require_no_leak(trainer, base, "sft.packing")
    rows = some_rows(len(base.tokenizer))
    packed = packing.packed(Dataset.from_list([vars(row) for row in rows]), 40)
    assert len(packed) < len(rows)
    alone = loss_of(base.model, [{name: torch.tensor([ids]) for name, ids in vars(row).items()} for row in rows])
    assert loss_of(base.model, [collator([row]) for row in packed]) == pytest.approx(alone, abs=1e-5)
    assert loss_of(base.model, [collator(list(packed))]) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["llama", "gpt_oss"])
def test_rounding_in_half_precision_is_told_from_a_leak(kind: str, dtype: str, tmp_path: Path) -> None:
    folder = architectures.tiny_model(kind, tmp_path / kind)
    base = loading.load_base(ModelConfig.model_validate({"name": str(folder), "device": "cpu", "dtype": dtype}))
    collator = DataCollatorForLanguageModeling(pad_token_id=1, padding_free=True)
    leak = packing.leak_of(base.model, collator, base)
    assert (leak.packed < leak.joined / 100) if kind == "llama" else (leak.packed > leak.joined / 2)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("keys", [{}, {"full_finetuning": True}], ids=["adapters", "all weights"])
def test_the_trainer_learns_the_same_from_packed_rows(
    attention: str, keys: dict[str, Any], campaign: Callable[..., Any], tmp_path: Path
) -> None:
    def learnt(packs: bool) -> tuple[float, dict[str, torch.Tensor]]:
        folder = tmp_path / str(packs)
        folder.mkdir()
        made = campaign(
            folder,
            model={"attn_implementation": attention},
            sft={"max_length": 40, "packing": packs, "train_batch_size": 8, **keys},
        )
        config = made.stages["sft"]
        base = loading.load_base(config.model, master_weights=config.full_finetuning)
        torch.manual_seed(0)
        with loop.scored_completions_only():
            trainer = sft.train.build_trainer(
                config, runs.begin(config), base, TrainingRows.of(some_rows(250)), TrainingRows.of([])
            )
            assert (trainer.args.per_device_train_batch_size == 1) == packs
            batch = trainer.data_collator(list(trainer.train_dataset))
            assert ("attention_mask" in batch) != packs
            loss = trainer.compute_loss(trainer.model, batch)
            loss.backward()
        trained = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
        return loss.item(), trained

    (loss, gradients), (expected_loss, expected) = learnt(True), learnt(False)
    assert loss == pytest.approx(expected_loss, abs=1e-5)
    assert gradients.keys() == expected.keys() and any(g.abs().max() > 1e-3 for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize(("keys", "told"), [({}, True), ({"packing": False}, False), ({"max_length": 8192}, False)])
def test_packed_rows_whose_mask_is_large_are_told_of(
    campaign: Callable[..., Any], tmp_path: Path, keys: dict[str, Any], told: bool
) -> None:
    made = campaign(tmp_path, sft={"packing": True, "max_length": 32768, **keys})
    problems, notes = check(made)
    masks = [note for note in notes if note.startswith("sft.packing: the mask of a row of 32768 tokens takes 1.0 GiB")]
    assert bool(masks) == told
    assert any("but the model's context has 256 tokens" in problem for problem in problems), "which bounds it"


def test_what_is_counted_of_training_rows_is_what_counting_their_labels_gives() -> None:
    draw, end = random.Random(0), 2
    rows = [Encoded([1] * n, [draw.choice([IGNORED, IGNORED, 5, end]) for _ in range(n)]) for n in [1, 1, 2, 9, 30, 3]]
    rows += [Encoded([1] * 4, labels) for labels in ([IGNORED] * 4, [5] * 4, [5, 5, IGNORED, IGNORED])]
    table = rows_batch(rows, rows, end).to_pydict()
    assert table["labels"] == [row.labels for row in rows]
    assert table["with_loss"] == [sum(label != IGNORED for label in row.labels) for row in rows]
    assert table["ends"] == [row.labels.count(end) for row in rows]
    for row, asked in zip(rows, table["asked"], strict=True):
        text = "".join("." if label == IGNORED else "x" for label in row.labels).rstrip(".")
        assert asked == len(text.rstrip("x")), "tokens before the last answer"
