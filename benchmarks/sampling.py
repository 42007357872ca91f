"""How fast answers are sampled: ours beside `generate`, and two processes beside two threads.

    python benchmarks/sampling.py            embedded model, 32 starter prompts x 4 answers, 48 new tokens

Prints tokens per second of each way, interleaved over `ROUNDS` rounds (a busy machine slows all alike), and the ratio
of medians. Every answer is sampled to the limit, so that all ways do the same work.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from trueup.config import STARTER
from trueup.data.records import Dropped, Message
from trueup.models import loading
from trueup.models.chat import encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.loading import SavedPolicy
from trueup.models.sampling import Decoding, sample, sample_saved
from trueup.models.tensors import pad_left

ROUNDS, PROMPTS, SAMPLES, NEW_TOKENS = 3, 32, 4, 48


def main() -> None:
    from trueup.data.formats import read_prompts

    policy = loading.load_base(ModelConfig(chat_template="chatml"))
    policy.model.eval()
    # A token that is never sampled stands for EOS: no answer ends early.
    policy.tokenizer.eos_token = "<jupyter_script>"
    policy.model.generation_config.eos_token_id = None
    rows = read_prompts(STARTER / "prompts.jsonl", Dropped())
    prompts = [row.prompt for row in rows[:: len(rows) // PROMPTS][:PROMPTS]]
    decoding = Decoding(NEW_TOKENS, top_k=50)
    with tempfile.TemporaryDirectory() as folder:
        loading.save(policy, Path(folder))

        def workers(count: int) -> Callable[[], object]:
            return lambda: list(
                sample_saved(
                    SavedPolicy(Path(folder)), ModelConfig(), prompts, decoding, SAMPLES, 64, num_workers=count
                )
            )

        ways: dict[str, Callable[[], object]] = {
            "generate, 2 threads": lambda: [_generate(policy, prompts[i : i + 16]) for i in range(0, len(prompts), 16)],
            "ours, 2 threads": lambda: sample(policy, prompts, decoding, SAMPLES, 64),
            "ours, 2 processes (start included)": workers(2),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                seconds[name].append(time.perf_counter() - started)
    tokens = len(prompts) * SAMPLES * NEW_TOKENS
    base = statistics.median(seconds["generate, 2 threads"])
    for name, times in seconds.items():
        rates = sorted(tokens / s for s in times)
        ratio = base / statistics.median(times)
        print(f"{name:<36} {rates[0]:6.0f} .. {rates[-1]:6.0f} tokens/s   x {ratio:.2f}")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {ROUNDS} rounds")


@torch.inference_mode()
def _generate(policy: loading.Loaded, prompts: list[list[Message]]) -> None:
    ids, mask = pad_left([encode_prompt(policy.tokenizer, p) for p in prompts], policy.tokenizer.pad_token_id)
    policy.model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=True,
        top_k=50,
        num_return_sequences=SAMPLES,
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
    )


if __name__ == "__main__":
    main()
