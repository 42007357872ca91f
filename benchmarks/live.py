"""Policies that answer in lockstep: one pass with each row's own adapters, beside PEFT's ways and merged models.

    python benchmarks/live.py            embedded model, random adapters of rank 16, a prompt of 60 tokens, 20 new ones

Prints milliseconds a step (a token of every policy) with 1, 2 and 4 policies: processor time of one thread, which a
busy machine changes least, the least of `ROUNDS` rounds.

    one pass, own adapters   trueup.models.lockstep
    PEFT, mixed batch        one pass with `adapter_names`; sums of adapters were concatenated before
    PEFT, one by one         `set_adapter` and a pass for each policy
    merged, one by one       a whole model for each policy, in memory
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoConfig

from trueup.models import loading
from trueup.models.cache import as_argument, roomy_cache
from trueup.models.config import ModelConfig
from trueup.models.lockstep import Adapted
from trueup.models.policies import PolicyInfo
from trueup.models.sources import embedded

ROUNDS, PROMPT, NEW_TOKENS = 3, 60, 20
SUMS = {"sft": ("sft",), "aligned": ("sft", "align"), "base": (), "other": ("align",)}


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        paths = {name: Path(folder) / name for name in ("sft", "align")}
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=TaskType.CAUSAL_LM)
        for path in paths.values():
            get_peft_model(loading.load_base(ModelConfig()).model, lora).save_pretrained(path)
        ours = Adapted(loading.load_base(ModelConfig()))
        peft: Any = get_peft_model(loading.load_base(ModelConfig()).model, lora, "sft")
        peft.add_adapter("align", lora)
        peft.base_model.add_weighted_adapter(["sft", "align"], [1.0, 1.0], "aligned", combination_type="cat")
        peft.eval()
        plain = loading.load_base(ModelConfig()).model.eval()

        def own(names: Sequence[str]) -> float:
            ours.use([PolicyInfo(name, name, None, tuple(paths[part] for part in SUMS[name])) for name in names])
            return seconds(
                [(len(names), lambda cache, **read: ours.loaded.model(**read, **as_argument(cache, ours.loaded.model)))]
            )

        def mixed(names: Sequence[str]) -> float:
            which = [{"base": "__base__", "other": "align"}.get(name, name) for name in names]
            return seconds(
                [(len(names), lambda cache, **read: peft(**read, **as_argument(cache, peft), adapter_names=which))]
            )

        def switched(name: str) -> Callable[..., Any]:
            def forward(cache: Any, **read: Any) -> Any:
                read |= as_argument(cache, peft)
                if not SUMS[name]:
                    with peft.disable_adapter():
                        return peft(**read)
                peft.base_model.set_adapter(list(SUMS[name]))
                return peft(**read)

            return forward

        ways: dict[str, Callable[[Sequence[str]], float]] = {
            "one pass, own adapters": own,
            "PEFT, mixed batch": mixed,
            "PEFT, one by one": lambda names: seconds([(1, switched(name)) for name in names]),
            "merged, one by one": lambda names: seconds(
                [(1, lambda cache, **read: plain(**read, **as_argument(cache, plain)))] * len(names)
            ),
        }
        for count in (1, 2, 4):
            taken: dict[str, list[float]] = {way: [] for way in ways}
            for _ in range(ROUNDS):
                for way, run in ways.items():
                    taken[way].append(run(list(SUMS)[:count]))
            for way, values in taken.items():
                print(f"{count} policies  {way:<24} {1000 * min(values):6.0f} ms a step")


@torch.inference_mode()
def seconds(forwards: list[tuple[int, Callable[..., Any]]]) -> float:
    """Mean time of a step that calls each of these with a batch of so many rows."""
    config, going = AutoConfig.from_pretrained(embedded.embedded_model()), []
    for rows, forward in forwards:
        cache = roomy_cache(config)
        read = torch.full((rows, PROMPT), 100)
        forward(cache, input_ids=read, use_cache=True, logits_to_keep=1)
        going.append((forward, read[:, :1], cache))
    started = time.process_time()
    for _ in range(NEW_TOKENS):
        for forward, token, cache in going:
            forward(cache, input_ids=token, use_cache=True, logits_to_keep=1)
    return (time.process_time() - started) / NEW_TOKENS


if __name__ == "__main__":
    main()
