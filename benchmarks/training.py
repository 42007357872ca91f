"""What it costs that TRL scores every position on a CPU: SFT steps with and without `scored_completions_only`.

    python benchmarks/training.py            embedded model, LoRA on the last ten blocks, batch 4 of the starter set

Prints seconds per step of both ways, interleaved, and the ratio of medians; the losses must be equal.
"""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext

import torch
from peft import TaskType, get_peft_model

from trueup.config import STARTER
from trueup.data.formats import read_demonstrations
from trueup.data.records import Dropped
from trueup.models import loading
from trueup.models.chat import encode_demonstration
from trueup.models.config import ModelConfig
from trueup.models.tensors import pad_right
from trueup.training import adapters, loop
from trueup.training.config import LoRAConfig, TrainConfig

STEPS = 6


def main() -> None:
    from trl.trainer.utils import add_fused_lm_head

    model_config = ModelConfig(chat_template="chatml")
    base = loading.load_base(model_config)
    add_fused_lm_head(base.model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    config = TrainConfig(run_dir="unused", model=model_config, learning_rate=1e-3, lora=LoRAConfig(last_layers=10))
    model = get_peft_model(base.model, adapters.adapter(config, base.model, TaskType.CAUSAL_LM))
    rows = read_demonstrations(STARTER / "demonstrations.jsonl", Dropped())
    seconds: dict[str, list[float]] = {"every position": [], "completions only": []}
    for step in range(STEPS):
        batch = rows[step * 4 : step * 4 + 4]
        encoded = [one for row in batch for one in encode_demonstration(base.tokenizer, row.messages)]
        ids, mask = pad_right([row.input_ids for row in encoded], base.tokenizer.pad_token_id)
        labels, _ = pad_right([row.labels for row in encoded], -100)
        losses = []
        for name, context in (
            ("every position", nullcontext()),
            ("completions only", loop.scored_completions_only()),
        ):
            with context:
                started = time.perf_counter()
                loss = model(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True).loss
                loss.backward()
                seconds[name].append(time.perf_counter() - started)
            losses.append(loss.item())
        assert abs(losses[0] - losses[1]) < 1e-4, losses
    medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name:<18} {median:.2f} s a step")
    print(f"ratio {medians['every position'] / medians['completions only']:.2f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {STEPS - 1} steps after one warm-up")


if __name__ == "__main__":
    main()
