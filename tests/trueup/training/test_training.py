"""What stands around TRL's trainers: arguments, adapters, checkpoints, and the one private thing that is touched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import TaskType, get_peft_model
from transformers import TrainerState

from sft.config import SFTConfig
from trueup import runs
from trueup.config import SplitConfig
from trueup.errors import ConfigError, ModelError
from trueup.models import loading
from trueup.models.config import ModelConfig
from trueup.training import adapters, loop
from trueup.training.arguments import build_arguments, trainer_arguments, with_user_arguments
from trueup.training.batches import Among, LengthGrouped


def configured(base: Path, folder: Path, **keys: Any) -> SFTConfig:
    model = ModelConfig(name=str(base), chat_template="plain", device="cpu")
    return SFTConfig(run_dir=folder, model=model, split=SplitConfig(), **{"data": ["starter"], **keys})


@pytest.fixture
def loaded(tiny_base: Path) -> loading.Loaded:
    return loading.load_base(ModelConfig(name=str(tiny_base), chat_template="plain", device="cpu"))


# ---- TRL's private switch ---------------------------------------------------------------------------------------


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many positions went through the head, at each call."""
    from trl.trainer import utils

    seen: list[int] = []
    real = utils._ChunkedLogProbFunction

    class Spy:
        @staticmethod
        def apply(hidden: torch.Tensor, *rest: Any) -> Any:
            seen.append(len(hidden))
            return real.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Spy)
    return seen


def loss_and_gradients(trainer: Any) -> tuple[float, dict[str, torch.Tensor]]:
    trainer.model.train()
    trainer.model.zero_grad(set_to_none=True)
    batch = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def sft_trainer(base: Path, folder: Path) -> Any:
    from sft.tokens import TrainingRows
    from sft.train import build_trainer
    from trueup.models.chat import Encoded

    config = configured(base, folder, train_batch_size=3, full_finetuning=True)
    rows = [
        Encoded([5, 6, 7, 8, 0], [-100, -100, 7, 8, 0]),
        Encoded([9, 9, 0], [-100, 9, 0]),
        Encoded([4] * 9, [-100] * 9),
    ]
    return build_trainer(
        config, runs.begin(config), loading.load_base(config.model), TrainingRows.of(rows), TrainingRows.of([])
    )


def dpo_trainer(base: Path, folder: Path) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy = loading.load_base(ModelConfig(name=str(base), chat_template="plain", device="cpu"))
    pairs = [
        {"prompt": "Say red.", "chosen": " It is red.", "rejected": " No"},
        {"prompt": "Say blue and then green.", "chosen": " It", "rejected": " It is blue and grey."},
    ]
    arguments = DPOConfig(
        output_dir=str(folder), use_cpu=True, report_to="none", per_device_train_batch_size=2, bf16=False
    )
    return DPOTrainer(
        policy.model, args=arguments, train_dataset=Dataset.from_list(pairs), processing_class=policy.tokenizer
    )


@pytest.mark.parametrize("make", [sft_trainer, dpo_trainer], ids=["sft", "dpo"])
def test_scoring_only_positions_with_loss_changes_neither_loss_nor_gradients(
    make: Callable[..., Any], tiny_base: Path, tmp_path: Path, scored: list[int]
) -> None:
    trainer = make(tiny_base, tmp_path)
    torch.manual_seed(0)
    expected_loss, expected = loss_and_gradients(trainer)
    everything = max(scored)
    scored.clear()
    with loop.scored_completions_only():
        torch.manual_seed(0)
        loss, gradients = loss_and_gradients(trainer)
    assert 0 < max(scored) < everything, "fewer positions must go through the head, or this does nothing"
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert gradients.keys() == expected.keys() and any(g.abs().max() > 1e-4 for g in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_switch_is_put_back_and_its_absence_is_loud(monkeypatch: pytest.MonkeyPatch) -> None:
    from trl.trainer import utils

    original = utils._use_triton
    with pytest.raises(RuntimeError, match="inside"), loop.scored_completions_only():
        assert utils._use_triton is not original
        raise RuntimeError("inside")
    assert utils._use_triton is original
    monkeypatch.delattr(utils, "_use_triton")
    with pytest.raises(AttributeError, match="_use_triton"), loop.scored_completions_only():
        pass


# ---- Arguments --------------------------------------------------------------------------------------------------


def test_users_arguments_reach_trl_and_what_trl_refuses_is_a_problem_of_the_file(
    tiny_base: Path, tmp_path: Path
) -> None:
    from trl import SFTConfig as TRLConfig

    good = configured(tiny_base, tmp_path, trainer_args={"weight_decay": 0.1})
    assert with_user_arguments({"seed": 1}, good, TRLConfig) == {"seed": 1, "weight_decay": 0.1}
    wrong = configured(tiny_base, tmp_path, trainer_args={"optim": "adamv"})
    with pytest.raises(ConfigError, match=r"sft: trl\.SFTConfig refuses .*adamv.* \(trainer_args: optim: 'adamv'\)"):
        build_arguments(TRLConfig, {"output_dir": str(tmp_path)}, wrong)


def test_the_batch_goes_through_in_parts_that_divide_it(
    tiny_base: Path, tmp_path: Path, loaded: loading.Loaded
) -> None:
    def arguments(**keys: Any) -> tuple[int, int]:
        config = configured(tiny_base, tmp_path, train_batch_size=12, **keys)
        made = trainer_arguments(config, SimpleNamespace(home=tmp_path), loaded, [5, 9])  # type: ignore[arg-type]
        return made["per_device_train_batch_size"], made["gradient_accumulation_steps"]

    assert arguments() == (12, 1)
    assert arguments(per_device_train_batch_size=4) == (4, 3)
    with pytest.raises(ConfigError) as caught:
        arguments(per_device_train_batch_size=5)
    assert (
        str(caught.value) == "sft.per_device_train_batch_size: 1 problem\n  5 does not divide the 12 rows of a process"
    )


# ---- Adapters ---------------------------------------------------------------------------------------------------


def trained(config: SFTConfig, loaded: loading.Loaded, **keys: Any) -> set[str]:
    model = get_peft_model(loaded.model, adapters.adapter(config, loaded.model, TaskType.CAUSAL_LM, **keys))
    return {name.removeprefix("base_model.model.model.") for name, p in model.named_parameters() if p.requires_grad}


def test_only_the_last_blocks_are_adapted_where_that_is_asked_for(
    tiny_base: Path, tmp_path: Path, loaded: loading.Loaded
) -> None:
    names = trained(configured(tiny_base, tmp_path, lora={"r": 2, "last_layers": 1}), loaded)
    assert {name.split(".")[1] for name in names} == {"1"}
    assert {name.split(".")[3] for name in names} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    }


def test_all_blocks_and_chosen_modules_are_adapted_where_that_is_asked_for(
    tiny_base: Path, tmp_path: Path, loaded: loading.Loaded
) -> None:
    config = configured(tiny_base, tmp_path, lora={"r": 2, "last_layers": 2, "target_modules": ["q_proj", "v_proj"]})
    names = trained(config, loaded)
    assert {(name.split(".")[1], name.split(".")[3]) for name in names} == {
        (b, p) for b in "01" for p in ("q_proj", "v_proj")
    }


def test_an_adapter_that_would_adapt_nothing_is_refused(
    tiny_base: Path, tmp_path: Path, loaded: loading.Loaded
) -> None:
    for lora, said in [
        ({"last_layers": 3}, "sft.lora.last_layers: 1 problem\n  3, but the model has 2 layers"),
        (
            {"last_layers": 1, "target_modules": "query"},
            "sft.lora.target_modules: 1 problem\n  no linear module of that name: 'query'",
        ),
    ]:
        with pytest.raises(ConfigError) as caught:
            adapters.adapter(configured(tiny_base, tmp_path, lora=lora), loaded.model, TaskType.CAUSAL_LM)
        assert str(caught.value) == said
    assert (
        adapters.adapter(configured(tiny_base, tmp_path, full_finetuning=True), loaded.model, TaskType.CAUSAL_LM)
        is None
    )


# ---- Resume -----------------------------------------------------------------------------------------------------


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> None:
    (folder / f"checkpoint-{step}").mkdir()
    (folder / f"checkpoint-{step}/model.safetensors").write_text("w")
    if state is not None:
        (folder / f"checkpoint-{step}/trainer_state.json").write_text(state)


def test_training_goes_on_from_the_newest_whole_checkpoint_and_a_cut_one_is_removed(tmp_path: Path) -> None:
    assert loop.last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 90)
    checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 110, state='{"global')
    checkpoint(tmp_path, 120, state=None)
    (tmp_path / "checkpoint-final").mkdir()
    (tmp_path / "checkpoint-notes.txt").write_text("somebody's")
    assert loop.last_checkpoint(tmp_path) == tmp_path / "checkpoint-100"
    left = ["checkpoint-100", "checkpoint-90", "checkpoint-final", "checkpoint-notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left, "and what somebody else keeps there stays"


def test_metrics_of_steps_that_are_done_again_are_forgotten_so_that_each_step_stands_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 0, "eval_loss": 3.0}, *({"step": i, "loss": 3.0 - i / 10} for i in range(1, 6))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 6, "lo')
    loop._forget_metrics_after(path, 3)
    assert [row["step"] for row in loop.read_metrics(path)] == [0, 1, 2, 3]
    loop._forget_metrics_after(path, 0)
    assert loop.read_metrics(path) == rows[:1]


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_the_stage_and_names_the_key(
    tiny_base: Path, tmp_path: Path, loss: float
) -> None:
    watch = loop.Watch(runs.begin(configured(tiny_base, tmp_path)))
    with pytest.raises(ModelError, match=r"sft, step 7: the loss is (nan|inf), .* lower sft\.learning_rate"):
        watch.on_log(None, TrainerState(global_step=7), None, {"loss": loss})


def test_a_machine_with_several_gpus_trains_on_one_unless_it_is_asked_for_more(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would wrap the model for all GPUs that it sees, which TRL's trainers refuse."""
    from trl import DPOConfig

    monkeypatch.setattr(DPOConfig, "_setup_devices", property(lambda self: torch.device("cpu")), raising=False)
    monkeypatch.setattr(DPOConfig, "_n_gpu", 2, raising=False)
    made = build_arguments(DPOConfig, {"output_dir": str(tmp_path), "bf16": False}, configured(tiny_base, tmp_path))
    assert made.n_gpu == 1


def steps_of(order: LengthGrouped) -> list[list[int]]:
    """The rows of each optimiser step of one process."""
    rows = [row for of_pass in order for row in of_pass]
    return [rows[start : start + order.rows] for start in range(0, len(rows), order.rows)]


def test_batches_hold_rows_of_like_length_each_row_once_and_the_longest_first() -> None:
    lengths = [10 + (row * 37) % 90 for row in range(250)]  # not a multiple of the rows of a step
    steps = steps_of(LengthGrouped(4, lengths, seed=0, at_once=2))

    assert sorted(row for step in steps for row in step) == list(range(250))
    assert max(lengths) in [lengths[row] for row in steps[0]]
    padded = sum(len(step) * max(lengths[row] for row in step) for step in steps)
    assert padded < 1.08 * sum(lengths)
    longest = [max(lengths[row] for row in step) for step in steps]
    assert longest != sorted(longest, reverse=True), "from long to short is a curriculum that nobody asked for"


def test_the_order_of_batches_depends_on_seed_and_epoch_alone() -> None:
    lengths = [10 + row % 50 for row in range(100)]
    order = LengthGrouped(4, lengths, seed=1, at_once=4)
    first = list(order)
    torch.manual_seed(99)
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    assert list(LengthGrouped(4, lengths, seed=2, at_once=4)) != first


@pytest.mark.parametrize("rows", range(1, 30))
def test_no_row_is_computed_alone_where_two_are_the_fewest_and_none_is_left_out(rows: int) -> None:
    for at_once in (2, 4, 8):
        order = LengthGrouped(8, list(range(rows)), seed=0, at_once=at_once, least=2)
        passes = list(order)
        assert len(passes) == len(order) and {row for of_pass in passes for row in of_pass} == set(range(rows))
        assert all(2 <= len(of_pass) <= at_once for of_pass in passes) and sum(map(len, passes)) <= rows + 1
        assert rows == 1 or len(set(passes[-1])) == len(passes[-1])


@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("rows", range(1, 40))
def test_processes_read_together_what_one_reads_and_every_row_weighs_the_same(rows: int, processes: int) -> None:
    """In every step, also a last one that is not full: the mean over all of them of the weighted mean losses of their
    forward passes is the mean over the step's rows."""
    values = np.random.default_rng(rows).normal(size=rows)  # the loss of each row
    alone, lengths = LengthGrouped(8, list(range(rows)), 3, at_once=8), list(range(rows))
    for at_once in (1, 2):
        orders = [LengthGrouped(8, lengths, 3, at_once, 1, Among(processes, one)) for one in range(processes)]
        assert len({len(order) for order in orders}) == 1, "one process would wait for the others for ever"
        passes = [iter(order) for order in orders]
        for step, expected in enumerate(steps_of(alone)):
            losses, read = [], set()
            for order, of_process in zip(orders, passes, strict=True):
                for weight in order.weights(step):
                    of_pass = next(of_process)
                    assert len(of_pass) <= at_once
                    losses.append(weight * values[of_pass].mean())
                    read |= set(of_pass) if weight else set()
            assert read == set(expected)
            assert np.mean(losses) == pytest.approx(values[expected].mean())
        assert all(next(of_process, None) is None for of_process in passes)
