"""Log-probabilities of completions, their KL to another policy, and scores of a reward model.

A reward model may have another tokenizer and chat template than the policy whose answers it scores. So the text is what
it is given (`score_answers`), and recorded tokens count only where they are its own tokens of that text.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from trueup.console import say
from trueup.data.records import CandidateScores, Message
from trueup.errors import DataError
from trueup.files import Json
from trueup.models import tensors
from trueup.models.cache import as_argument, reads_in_parts, roomy_cache
from trueup.models.chat import encode_completion, encode_prompt, sampled_ids
from trueup.models.heads import read_heads
from trueup.models.loading import Loaded
from trueup.models.sources.settings import context_length
from trueup.models.templates.ends import as_trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# ---- Scoring ----------------------------------------------------------------------------------------------------


@torch.inference_mode()
def completion_logps(
    policy: Loaded,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[Sequence[int]],
    batch_size: int = 16,
    counted: Sequence[Sequence[int]] | None = None,
) -> list[float]:
    """log pi(completion | prompt) in nats, summed over the completion's tokens, at temperature 1.

    counted  1 for each token that counts, 0 for the others; None: all count
    """
    encoded = [encode_prompt(policy.tokenizer, prompt) for prompt in prompts]
    logps = [0.0] * len(encoded)
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]) - len(completions[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        logits, tokens, scored = _read_completions(policy, [encoded[i] for i in batch], [completions[i] for i in batch])
        per_token = torch.zeros(scored.shape, device=tokens.device)
        per_token[scored] = tensors.token_logprobs(logits, tokens)
        for row, i in enumerate(batch):
            own = per_token[row, scored[row]]
            logps[i] = (own if counted is None else own * own.new_tensor(counted[i])).sum().item()
    return logps


@torch.inference_mode()
def completion_kls(
    policy: Loaded,
    reference: Loaded,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[Sequence[int]],
    batch_size: int = 4,
) -> list[list[float]]:
    """KL(policy || reference) in nats at each token of each completion, over the whole vocabulary, at temperature 1.

    batch_size  small, since each token takes two distributions over the vocabulary in memory
    """
    encoded = [[encode_prompt(side.tokenizer, prompt) for prompt in prompts] for side in (policy, reference)]
    kls: list[list[float]] = [[] for _ in completions]
    order = sorted(range(len(completions)), key=lambda i: -len(encoded[0][i]) - len(completions[i]))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        answers = [completions[i] for i in batch]
        logits, other = (
            _read_completions(side, [texts[i] for i in batch], answers)[0]
            for side, texts in zip((policy, reference), encoded, strict=True)
        )
        per_token = iter(tensors.kl(logits, other.to(logits.device)).tolist())
        for i, answer in zip(batch, answers, strict=True):
            kls[i] = [next(per_token) for _ in answer]
    return kls


def _read_completions(
    policy: Loaded, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The distributions of the completions' tokens, one completion after the other.

    returns  logits (N, V) of all N tokens, the tokens (N,), and where they stand (B, T - 1)
    """
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = tensors.pad_right(rows, policy.tokenizer.pad_token_id)
    tokens, mask = tokens.to(policy.placement.device), mask.to(policy.placement.device)
    scored = mask.clone()  # (B, T), True on completion tokens
    for row, prompt in enumerate(prompts):
        scored[row, : len(prompt)] = False
    scored = scored[:, 1:]
    inputs = {"input_ids": tokens, "attention_mask": mask, "use_cache": False}
    if _head_is_plain(policy.model):
        # Only completion tokens go through the head, which is a third of a small model.
        hidden = policy.model.base_model(**inputs).last_hidden_state
        logits = policy.model.get_output_embeddings()(hidden[:, :-1][scored])
    else:
        logits = policy.model(**inputs).logits[:, :-1][scored]
    return logits, tokens[:, 1:][scored], scored


def _head_is_plain(model: Any) -> bool:
    """Whether logits are the head's product alone. Gemma 2 caps them; Granite, Cohere and Falcon-H1 scale them."""
    config = model.config.get_text_config()
    own = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")
    return all(getattr(config, key, None) in (None, 1) for key in own)


class Answer(Protocol):
    """The parts of an answer that count for its score; `trueup.data.records.Candidate` has them."""

    @property
    def text(self) -> str: ...
    @property
    def token_ids(self) -> Sequence[int] | None: ...
    @property
    def finished(self) -> bool: ...


class Reading(NamedTuple):
    """A prompt and an answer to it as a reward model reads them: its tokens."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


class HeadScores(NamedTuple):
    """What a reward model says of an answer."""

    score: float
    deviations: tuple[float, ...] = ()
    """By how much the score of each head of its ensemble differs from this; they sum to 0. Empty: it has none."""

    @property
    def heads(self) -> tuple[float, ...]:
        """The score by each head, whose mean is the score."""
        return tuple(self.score + deviation for deviation in self.deviations)

    @property
    def spread(self) -> float:
        """Standard deviation of the score over heads, as a sample's; 0 without an ensemble."""
        count = len(self.deviations)
        return math.sqrt(sum(one * one for one in self.deviations) / (count - 1)) if count > 1 else 0.0


def candidate_scores(prompt_id: str, answers: Sequence[HeadScores | None]) -> CandidateScores:
    """The row of candidate_scores.jsonl of a prompt's answers."""
    return CandidateScores(
        prompt_id=prompt_id,
        scores=[one and one.score for one in answers],
        heads=[one and [*one.heads] for one in answers] if any(one and one.deviations for one in answers) else None,
    )


def score_answers(
    reward_model: Loaded,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[Answer],
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[float | None]:
    """The reward model's score of each answer, whichever policy wrote it, in the reward model's own template and
    tokens; None for an answer that it cannot read."""
    return [one and one.score for one in score_answers_by_heads(reward_model, prompts, answers, on_progress)]


def score_answers_by_heads(
    reward_model: Loaded,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[Answer],
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[HeadScores | None]:
    """The same with what each head of its ensemble says."""
    readings = read_answers(reward_model, prompts, answers)
    readable = [reading for reading in readings if reading is not None]
    unread = len(readings) - len(readable)
    scores = iter(
        score_readings_by_heads(reward_model, readable, on_progress=lambda count: on_progress(unread + count))
    )
    return [None if reading is None else next(scores) for reading in readings]


def score_sets_by_heads(
    reward_model: Loaded,
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[Sequence[Answer]],
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[list[HeadScores | None]]:
    """The same for several answers to each of P prompts.

    on_progress  called with the number of answers that are scored, and of all
    """
    each = [prompt for prompt, row in zip(prompts, answers, strict=True) for _ in row]
    flat = [answer for row in answers for answer in row]
    scores = iter(
        score_answers_by_heads(reward_model, each, flat, on_progress=lambda done: on_progress(done, len(flat)))
    )
    return [[next(scores) for _ in row] for row in answers]


def read_answers(
    reward_model: Loaded, prompts: Sequence[Sequence[Message]], answers: Sequence[Answer]
) -> list[Reading | None]:
    """Each answer in the reward model's tokens; None for one that it cannot read, which is no reason to end a stage.
    The first such answer of a reward model is reported, with the reason."""
    readings: list[Reading | None] = []
    encoded: dict[tuple[tuple[str, str], ...], tuple[int, ...]] = {}  # a template is slow, and prompts repeat
    for prompt, answer in zip(prompts, answers, strict=True):
        turns = tuple((message.role, message.content) for message in prompt)
        try:
            if turns not in encoded:
                encoded[turns] = tuple(encode_prompt(reward_model.tokenizer, prompt))
            readings.append(_read_answer(reward_model, encoded[turns], answer))
        except DataError as error:
            if not reward_model.unread:
                say(f"{'reward model':<12} an answer has no score: {error}")
            reward_model.unread += 1
            readings.append(None)
    return readings


def _read_answer(reward_model: Loaded, prompt: tuple[int, ...], answer: Answer) -> Reading:
    """An answer in a reward model's tokens: the recorded ones if its tokenizer decodes them to the answer's text, else
    those of the text. They end with its own end of turn exactly if the answer is finished.

    Raises DataError if its tokenizer cannot write the answer, or if its context has no room for prompt and answer.
    """
    tokenizer = reward_model.tokenizer
    recorded = sampled_ids(tokenizer, answer.text, answer.finished, answer.token_ids)
    ids = as_trained(tokenizer, recorded or encode_completion(tokenizer, answer.text, answer.finished))
    length = len(prompt) + len(ids)
    limit = context_length(reward_model.model.config)
    if limit is not None and length > limit:
        raise DataError(
            f"a prompt and its answer have {length} tokens of the reward model, whose context has {limit}: shorten "
            "prompts or answers (max_new_tokens), or take a reward model with a longer context"
        )
    return Reading(prompt, tuple(ids))


def conversion(reward_model: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase) -> str | None:
    """A sentence on what is done to answers for a reward model with another tokenizer or chat template than the
    policy's; None if both read and write the same tokens."""
    differs = ["tokenizer"] if _reads_otherwise(reward_model, policy) else []
    differs += ["chat template"] if reward_model.chat_template != policy.chat_template else []
    if not differs:
        return None
    return (
        f"the reward model's {' and '.join(differs)} {'differs' if len(differs) == 1 else 'differ'} from the policy's: "
        "it reads the text of every prompt and answer in its own template and tokens, and a finished answer ends with "
        f"its end of turn, {reward_model.eos_token!r}"
    )


def _reads_otherwise(reward_model: PreTrainedTokenizerBase, policy: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers differ in more than a pad token that the reward model's has for itself."""
    theirs, ours = _read_by(reward_model), _read_by(policy)
    more = {content for _, content in theirs.added - ours.added}
    lacks = ours.added - theirs.added
    return theirs.rules != ours.rules or bool(lacks) or not more <= {reward_model.pad_token}


class _TokenRules(NamedTuple):
    """What decides a tokenizer's tokens."""

    rules: tuple[str | None, Json]
    """Its EOS, and all but the added tokens; without padding, which changes no token."""
    added: set[tuple[int, str]]


def _read_by(tokenizer: PreTrainedTokenizerBase) -> _TokenRules:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules: Json = json.loads(backend.to_str()) if backend else {"vocabulary": tokenizer.get_vocab()}
    apart = {name: rules.pop(name, None) for name in ("padding", "truncation", "added_tokens")}
    added = {(token["id"], token["content"]) for token in apart["added_tokens"] or []}
    return _TokenRules((tokenizer.eos_token, rules), added)


def score(
    reward_model: Loaded,
    prompts: Sequence[Sequence[Message]],
    completions: Sequence[Sequence[int]],
    batch_size: int = 32,
) -> list[float]:
    """The reward model's score of each completion in its own tokens. Whichever token ended a completion, the model
    reads the end that it was trained on."""
    readings = [
        Reading(tuple(encode_prompt(reward_model.tokenizer, prompt)), tuple(as_trained(reward_model.tokenizer, ids)))
        for prompt, ids in zip(prompts, completions, strict=True)
    ]
    return score_readings(reward_model, readings, batch_size)


def score_readings(
    reward_model: Loaded,
    readings: Sequence[Reading],
    batch_size: int = 32,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[float]:
    """The reward model's score of each answer."""
    return [one.score for one in score_readings_by_heads(reward_model, readings, batch_size, on_progress)]


@torch.inference_mode()
def score_readings_by_heads(
    reward_model: Loaded,
    readings: Sequence[Reading],
    batch_size: int = 32,
    on_progress: Callable[[int], None] = lambda count: None,
) -> list[HeadScores]:
    """What the reward model says of each answer, read where its head reads (`trueup.models.heads`): nearly always at
    the last token. An empty answer is scored at the prompt's last token, as in training.

    A prompt is read once for all of its answers if the architecture allows, and answers of like length form a batch.
    """
    in_parts = reads_in_parts(reward_model.model.config)
    rows_of_prompt: dict[tuple[int, ...], list[int]] = {}  # the answers to each distinct prompt
    for i, reading in enumerate(readings):
        rows_of_prompt.setdefault(reading.prompt, []).append(i)
    scores, count = [HeadScores(0.0)] * len(readings), 0
    order = sorted(rows_of_prompt, key=len, reverse=True)
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        past = read_prompts(reward_model, chunk) if in_parts else None
        which = {i: row for row, prompt in enumerate(chunk) for i in rows_of_prompt[prompt]}
        by_length = sorted(which, key=lambda i: -len(readings[i].answer))
        for first in range(0, len(by_length), batch_size):
            batch = by_length[first : first + batch_size]
            answers = [readings[i].answer for i in batch]
            if past and answers[-1]:  # the last is the shortest; an empty one adds no token to the cache
                values = _score_batch(reward_model, past, [which[i] for i in batch], answers)
            else:
                values = _score_whole(reward_model, [readings[i].prompt for i in batch], answers)
            for i, (value, *deviations) in zip(batch, values.tolist(), strict=True):
                scores[i] = HeadScores(value, tuple(deviations))
            count += len(batch)
            on_progress(count)
    return scores


def read_prompts(reward_model: Loaded, prompts: Sequence[Sequence[int]]) -> tuple[DynamicCache, Tensor]:
    """The cache of P prompts and their mask (P, S)."""
    device = reward_model.placement.device
    tokens, mask = (tensor.to(device) for tensor in tensors.pad_left(prompts, reward_model.tokenizer.pad_token_id))
    cache, decoder = roomy_cache(reward_model.model.config), reward_model.model.base_model
    decoder(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=tensors.positions(mask),
        **as_argument(cache, decoder),
        use_cache=True,
    )
    return cache, mask


Inputs = dict[str, Tensor | DynamicCache | bool]
"""Arguments of a decoder's forward pass, by name."""


def answer_inputs(
    reward_model: Loaded, past: tuple[DynamicCache, Tensor], which: Sequence[int], completions: Sequence[Sequence[int]]
) -> tuple[Inputs, Tensor]:
    """The decoder's arguments to read B completions behind their prompts, and the completions' mask (B, T), which is
    True on real tokens; `which` gives each one's row among the prompts that were read."""
    model, device = reward_model.model, reward_model.placement.device
    rows = torch.tensor(which, device=device)  # (B,)
    cache = copy.deepcopy(past[0])
    cache.reorder_cache(rows)
    tokens, answered = (
        tensor.to(device) for tensor in tensors.pad_right(completions, reward_model.tokenizer.pad_token_id)
    )  # (B, T)
    mask = torch.cat([past[1][rows], answered], dim=1)  # (B, S + T)
    inputs: Inputs = {
        "input_ids": tokens,
        "attention_mask": mask,
        "position_ids": tensors.positions(mask)[:, -tokens.size(1) :],
        **as_argument(cache, model.base_model),
        "use_cache": True,
    }
    return inputs, answered


def _score_batch(
    reward_model: Loaded, past: tuple[DynamicCache, Tensor], which: Sequence[int], completions: Sequence[Sequence[int]]
) -> Tensor:
    """What every head says of B completions, as `answer_inputs` reads them: `trueup.models.heads.read_heads`."""
    inputs, answered = answer_inputs(reward_model, past, which, completions)
    hidden = reward_model.model.base_model(**inputs).last_hidden_state
    # transformers' own head finds the last token that is not padding by its id; here its position is known.
    return read_heads(reward_model.model, hidden, answered)


def _score_whole(
    reward_model: Loaded, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> Tensor:
    """The same, each completion read together with its prompt."""
    model, device = reward_model.model, reward_model.placement.device
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    tokens, mask = (tensor.to(device) for tensor in tensors.pad_right(rows, reward_model.tokenizer.pad_token_id))
    hidden = model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
    return read_heads(model, hidden, answer_mask(mask, prompts, completions))


def answer_mask(mask: Tensor, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> Tensor:
    """(B, T), True on the tokens of the completions; of an empty one, on the prompt's last token.

    mask  (B, T), True on real tokens, which are padded on the right
    """
    answered = mask.clone()
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        answered[row, : len(prompt) if completion else len(prompt) - 1] = False
    return answered
