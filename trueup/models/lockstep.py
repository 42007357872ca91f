"""Several policies that answer one prompt in lockstep, one token each per step; and where they differ.

One base model is in memory. A policy is the sum of LoRA adapters on it, and each row of a batch goes through the
adapters of its own policy. So all policies together take one forward pass per step:

    h_b = W x_b + sum_i s_i B_i A_i x_b,   i over the adapters of row b's policy   (Hu et al. 2021, arXiv:2106.09685)

PEFT reads the adapters. Its own mixed batches allow one adapter per row, but an aligned policy has two; they are also
slower (benchmarks/live.py). The base weights are never changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trueup import runs
from trueup.data.records import Candidate, Message
from trueup.errors import DataError, ModelError
from trueup.models import tensors
from trueup.models.cache import as_argument, roomy_cache
from trueup.models.chat import completion_text, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.course import Course, most_tokens
from trueup.models.loading import (
    Loaded,
    load_base,
    load_policy,
    load_reward_model,
    read_tokenizer,
)
from trueup.models.policies import REFERENCE, PolicyInfo, find_policies, model_config, reward_model_config
from trueup.models.sampling import Decoding, draw, noise
from trueup.models.scoring import conversion, score_answers
from trueup.models.sources.embedded import EMBEDDED, EMBEDDED_NAME
from trueup.models.sources.low_rank import more_than_linear
from trueup.models.sources.settings import context_length
from trueup.models.templates.ends import turn_ends

# ---- What comes out ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Token:
    """One more token of an answer."""

    id: int
    text: str
    """The text that it adds, in whole characters: the first bytes of a character add nothing, the last adds it all."""


@dataclass(frozen=True)
class NextTokens:
    """One token of every policy that is still answering."""

    tokens: dict[str, Token]
    ended: dict[str, Candidate] = field(default_factory=dict)
    """Answers that ended with this step, by an end of turn or at the limit."""


class Detokeniser:
    """The text of an answer that is still being sampled."""

    def __init__(self, tokenizer: Any):
        ends = turn_ends(tokenizer)
        self._decode = lambda ids: completion_text(tokenizer, [id for id in ids if id not in ends])
        self._ids: list[int] = []
        self._before = self._read = 0  # decoded anew from `_before`, because a token's text depends on what precedes it

    def add(self, token: int, last: bool = False) -> str:
        """The text that this token adds. With `last` it includes any character that is still incomplete."""
        self._ids.append(token)
        shown_text = self._decode(self._ids[self._before : self._read])
        text = self._decode(self._ids[self._before :])
        if text.endswith("�") and not last:  # the bytes so far are no character yet
            return ""
        self._before, self._read = self._read, len(self._ids)
        return text[len(shown_text) :]


# ---- One model, many adapters -----------------------------------------------------------------------------------


class Adapted:
    """A model in memory, and the adapters on it."""

    def __init__(self, loaded: Loaded):
        self.loaded = loaded
        loaded.model.eval()
        self._peft: Any = None
        self._names: dict[Path, str] = {}
        self._layers: list[Any] = []
        self._factors: dict[Any, tuple[Tensor, Tensor]] = {}
        self._tokens = 0
        loaded.model.register_forward_pre_hook(self._count, with_kwargs=True)

    def use(self, policies: Sequence[PolicyInfo]) -> None:
        """From now on row b of a batch is answered by the b-th of these policies."""
        for path in dict.fromkeys(path for policy in policies for path in policy.adapters):
            if path not in self._names:
                self._load(path)
        rows = [[self._names[path] for path in policy.adapters] for policy in policies]
        self._factors = {layer: _stacked(layer, rows) for layer in self._layers}

    def keep(self, rows: Tensor) -> None:
        """Only these rows of the batch go on."""
        self._factors = {layer: (a[rows], b[rows]) for layer, (a, b) in self._factors.items()}

    def _load(self, path: Path) -> None:
        from peft import PeftModel
        from peft.tuners.lora import LoraLayer

        if more := more_than_linear(path):
            what = "more than low-rank changes of linear modules, which is all that is added here"
            raise ModelError(f"{path}: {what} ({more})")
        name = f"adapter{len(self._names)}"
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.loaded.model, path, adapter_name=name)
        else:
            self._peft.load_adapter(path, name)
        self._peft.base_model.disable_adapter_layers()  # PEFT's layers pass through; `_add` adds each row's own change
        self._peft.eval()
        layers = [module for module in self._peft.modules() if isinstance(module, LoraLayer)]
        for layer in layers:
            if layer not in self._layers:
                layer.register_forward_hook(self._add)
        self._layers, self._names[path] = layers, name

    def _count(self, model: Any, args: Any, kwargs: Any) -> None:
        self._tokens = kwargs["input_ids"].numel()

    def _add(self, layer: Any, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """out (B, T, out) + x (B, T, in) A (B, in, R) B (B, R, out); float32, as PEFT computes it.

        OPT gives a layer all tokens of the batch as one row (B T, in). A layer that is given some of them, as an expert
        is, has no telling whose they are."""
        a, b = self._factors[layer]
        x = args[0].to(a.dtype)
        if x.dim() == 2:
            if len(x) != self._tokens:
                raise ModelError(f"an adapter of {type(layer.base_layer).__name__} reads a part of the tokens only")
            x = x.view(len(a), -1, x.size(-1))
        return out + (x @ a @ b).to(out.dtype).view(out.shape)


def _stacked(layer: Any, rows: Sequence[Sequence[str]]) -> tuple[Tensor, Tensor]:
    """The factors of each row's change to a linear layer: A (B, in, R) and B (B, R, out), scaled.

    The adapters of a row are concatenated along the rank; rows of a lower rank than R are padded with zeros.
    """
    one = next(iter(layer.lora_A.values())).weight
    factors = []
    for names in rows:
        names = [name for name in names if name in layer.lora_A]
        empty = (one.new_zeros(0, layer.in_features), one.new_zeros(layer.out_features, 0))
        a = torch.cat([empty[0], *(layer.lora_A[name].weight for name in names)], dim=0)
        b = torch.cat([empty[1], *(layer.lora_B[name].weight * layer.scaling[name] for name in names)], dim=1)
        factors.append((a, b))
    rank = max(len(a) for a, _ in factors)
    padded = [(F.pad(a, (0, 0, 0, rank - len(a))).T, F.pad(b, (0, rank - b.size(1))).T) for a, b in factors]
    return torch.stack([a for a, _ in padded]).detach(), torch.stack([b for _, b in padded]).detach()


# ---- The engine -------------------------------------------------------------------------------------------------


class Engine:
    """The policies of a run. Each model is loaded when it is first needed, and stays in memory."""

    def __init__(self, run_dir: Path, on_load: Callable[[str], None] = lambda what: None, trust: bool = False):
        self.run_dir, self.on_load = run_dir, on_load
        self.policies = {policy.name: policy for policy in find_policies(run_dir)}
        self.config: ModelConfig = model_config(run_dir, trust)
        self._models: dict[Path | None, Adapted] = {}
        self._trust = trust
        self._reward_model: Loaded | None = None

    @torch.inference_mode()
    def stream(self, names: Sequence[str], prompt: Sequence[Message], decoding: Decoding) -> Iterator[NextTokens]:
        """Every policy's answer grows by one token per step, until each has ended by an end of turn or at the limit.

        All policies use the random numbers of the first answer in `trueup.models.sampling`. So with the same decoding a
        policy answers here as it did in the comparison. The caller may stop at any step."""
        batches = [_Batch(*group, prompt, decoding) for group in self._by_model(names)]
        index = 0
        while batches:
            if index:
                for batch in batches:
                    batch.forward()
            yield _joined([batch.draw(index) for batch in batches])
            batches = [batch for batch in batches if batch.names]
            index += 1

    @torch.inference_mode()
    def log_ratios(self, prompt: Sequence[Message], token_ids: Sequence[int], policy: str) -> Tensor:
        """log pi(y_t | x, y_<t) - log pi_ref(y_t | x, y_<t) of every token of an answer, in nats, at temperature 1.

        returns  (T,) float32 on the CPU
        """
        logprobs = {}
        for model, names in self._by_model(dict.fromkeys([policy, REFERENCE])):
            loaded = model.loaded
            tokens = torch.tensor([encode_prompt(loaded.tokenizer, prompt) + list(token_ids)] * len(names))
            tokens = tokens.to(loaded.placement.device)  # (P, S + T)
            count = len(token_ids)
            logits = loaded.model(input_ids=tokens, use_cache=False, logits_to_keep=count + 1).logits[:, :-1]
            # Row by row: all logits in float32 would take gigabytes with a large vocabulary.
            for name, row in zip(names, logits, strict=True):
                logprobs[name] = tensors.token_logprobs(row, tokens[0, -count:]).cpu()
        return logprobs[policy] - logprobs[REFERENCE]

    def scores(self, prompt: Sequence[Message], answers: Sequence[Candidate]) -> list[float | None] | None:
        """The reward model's score of each answer, read in its own tokens, None for one that it cannot read; or None
        in a run without a reward model."""
        if self._reward_model is None:
            reward = runs.find_stage(self.run_dir, "reward")
            if reward is None:
                return None
            config = reward_model_config(self.run_dir, self.config, self._trust)
            folders = ((reward.dir, config), (runs.stage_dir(self.run_dir, "sft"), self.config))
            reads, writes = (read_tokenizer(folder / "model", of) for folder, of in folders)
            how = ", which reads the answers' text in tokens of its own" if conversion(reads, writes) else ""
            self.on_load(f"the reward model{how}")
            self._reward_model = load_reward_model(reward.dir / "model", config)
            self._reward_model.model.eval()
        return score_answers(self._reward_model, [prompt] * len(answers), answers)

    def _by_model(self, names: Sequence[str] | dict[str, None]) -> list[tuple[Adapted, list[str]]]:
        """The policies in groups that share their weights, loaded."""
        groups: dict[Path | None, list[str]] = {}
        for name in names:
            groups.setdefault(self.policies[name].model, []).append(name)
        return [(self._model(path, group), group) for path, group in groups.items()]

    def _model(self, path: Path | None, names: list[str]) -> Adapted:
        if path not in self._models:
            base = EMBEDDED_NAME if self.config.name == EMBEDDED else self.config.name
            own = next((policy.title for policy in self.policies.values() if policy.model == path), "")
            self.on_load(f"the weights of {own}" if path else f"the base model, {base}")
            self._models[path] = Adapted(load_policy(path, self.config) if path else load_base(self.config))
        model = self._models[path]
        model.use([self.policies[name] for name in names])
        return model


class _Batch:
    """The policies on one model while they answer: B rows, one policy each. Rows leave as their answers end."""

    def __init__(self, model: Adapted, names: list[str], prompt: Sequence[Message], decoding: Decoding):
        self.model, self.names, self.decoding = model, names, decoding
        loaded = model.loaded
        self.device = loaded.placement.device
        encoded = encode_prompt(loaded.tokenizer, prompt)
        limit, most = context_length(loaded.model.config), most_tokens(loaded.tokenizer, decoding)
        if limit is not None and len(encoded) + most > limit:
            raise DataError(
                f"the prompt has {len(encoded)} tokens; with {most} new ones that is more than this "
                f"model's context of {limit}: shorten the prompt, or ask for fewer tokens"
            )
        self.uniform = torch.from_numpy(noise(decoding, prompt, 0, most)).to(
            device=self.device, dtype=torch.float32
        )  # (T,)
        self.cache = roomy_cache(loaded.model.config)
        self.texts = {name: Detokeniser(loaded.tokenizer) for name in names}
        self.answers = {name: Course(loaded.tokenizer, decoding) for name in names}
        self.logps = dict.fromkeys(names, 0.0)
        self.drawn = torch.tensor([encoded] * len(names), device=self.device)  # (B, S) at first, then (B, 1)
        self.forward()

    def forward(self) -> None:
        """Run the model on the tokens that were drawn last. All rows are equally long, so no mask is needed."""
        model = self.model.loaded.model
        out = model(input_ids=self.drawn, **as_argument(self.cache, model), use_cache=True, logits_to_keep=1)
        self.logits = out.logits[:, -1]  # (B, V)

    def draw(self, index: int) -> NextTokens:
        """The next token of each row; rows that end with it leave the batch."""
        drawn = draw(self.logits, self.uniform[index].expand(len(self.names)), self.decoding).tolist()
        next_tokens = [self.answers[name].take(token) for name, token in zip(self.names, drawn, strict=True)]
        token_ids = torch.tensor(next_tokens, device=self.device)  # (B,)
        logprobs = tensors.token_logprobs(self.logits, token_ids)
        tokens, ended = {}, {}
        for name, token, logprob in zip(self.names, next_tokens, logprobs.tolist(), strict=True):
            self.logps[name] += logprob
            last = self.answers[name].ended
            tokens[name] = Token(token, self.texts[name].add(token, last))
            if last:
                ended[name] = self.answers[name].candidate(self.logps[name])
        self.drawn = token_ids.unsqueeze(1)
        if ended:
            self._keep([row for row, name in enumerate(self.names) if name not in ended])
        return NextTokens(tokens, ended)

    def _keep(self, rows: list[int]) -> None:
        self.names = [self.names[row] for row in rows]
        if rows:
            index = torch.tensor(rows, device=self.device)
            self.cache.reorder_cache(index)
            self.model.keep(index)
            self.drawn = self.drawn[index]


def _joined(steps: Sequence[NextTokens]) -> NextTokens:
    return NextTokens(
        {name: token for step in steps for name, token in step.tokens.items()},
        {name: answer for step in steps for name, answer in step.ended.items()},
    )
