"""The course of an answer while it is sampled: reasoning and answer, each with a budget of tokens. No torch.

A model that reasons may spend `max_thinking_tokens` on its block, and `max_new_tokens` begin to count behind it. Where
the block's budget is spent, or the model would end its turn inside the block, the block is closed by force: the tokens
that close it take the place of what was drawn. So an answer always follows, and it alone decides whether it was cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from trueup.artifacts.reports import Decoding
from trueup.data.records import Candidate
from trueup.models.chat import completion_text, continuation, split_sampled
from trueup.models.templates.block import budget, reasoning_block
from trueup.models.templates.ends import ends_turn, turn_ends

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Course:
    """One answer, token by token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, decoding: Decoding):
        self.tokenizer, self.decoding = tokenizer, decoding
        self.ids: list[int] = []
        self.ended = False
        self._ends = set(turn_ends(tokenizer))
        self._block, self._closing = reasoning_block(tokenizer), list[int]()
        self._part: Literal["start", "block", "answer"] = "answer"
        if self._block:
            self._part = "block" if self._block.opening else "start"
            self._closing = continuation(tokenizer, self._block.closing)
        self._budget = thinking_limit(tokenizer, decoding)
        self._answer_from = 0
        self._forced: list[int] = []
        self._closed_at: int | None = None

    def take(self, drawn: int) -> int:
        """The next token: the drawn one, unless the block is closed by force."""
        spent = len(self.ids) + len(self._closing) >= self._budget or drawn in self._ends
        if self._part == "block" and spent and not self._forced:
            self._forced, self._closed_at = [*self._closing], len(self.ids)
        token = self._forced.pop(0) if self._forced else drawn
        self.ids.append(token)
        if self._part != "answer" and not self._forced:
            self._look()
        if self._part == "answer":
            self.ended = token in self._ends or len(self.ids) - self._answer_from >= self.decoding.max_new_tokens
        return token

    def candidate(self, logp: float) -> Candidate:
        """The answer as a row on disk.

        logp  of its tokens, in nats
        """
        return candidate(self.tokenizer, self.ids, logp, self._closed_at)

    def _look(self) -> None:
        """Find the part that the next token belongs to."""
        assert self._block is not None
        if self._part == "start":
            begin = completion_text(self.tokenizer, self.ids).lstrip()
            if begin.startswith(self._block.start):
                self._part = "block"
            elif not self._block.start.startswith(begin) or len(self.ids) >= len(self._block.start):
                self._part = "answer"
        # A text has at most as many tokens as bytes.
        elif self._block.end in completion_text(self.tokenizer, self.ids[-len(self._block.closing) :]):
            self._part, self._answer_from = "answer", len(self.ids)


def most_tokens(tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> int:
    """Most tokens that an answer may have, with its reasoning."""
    return thinking_limit(tokenizer, decoding) + decoding.max_new_tokens


def thinking_limit(tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> int:
    """Most tokens of a block, with those that close it; 0 for a model that does not reason."""
    return budget(decoding.max_thinking_tokens) if reasoning_block(tokenizer) else 0


def drawn(tokenizer: PreTrainedTokenizerBase, answer: Candidate) -> list[int]:
    """1 for each token of an answer that the policy drew, 0 for each that closed its reasoning by force."""
    block, tokens = reasoning_block(tokenizer), [1] * len(answer.token_ids)
    if block and answer.closed_at is not None:
        count = len(continuation(tokenizer, block.closing))
        tokens[answer.closed_at : answer.closed_at + count] = [0] * count
    return tokens


def candidate(
    tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], logp: float, closed_at: int | None = None
) -> Candidate:
    """A sampled answer as a row on disk. It is finished exactly if its last token ends the turn."""
    reasoning, text = split_sampled(tokenizer, ids)
    return Candidate(
        text=text,
        reasoning=reasoning,
        reasoning_tokens=_tokens_of(tokenizer, ids, reasoning),
        closed_at=closed_at,
        token_ids=list(ids),
        finished=ends_turn(tokenizer, ids),
        logp=logp,
    )


def _tokens_of(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], reasoning: str) -> int:
    """The number of first tokens that hold the reasoning; a token that reaches into the answer counts as the
    answer's."""
    block = reasoning_block(tokenizer)
    length = len(reasoning.removeprefix(block.opening if block else ""))
    low, high = 0, len(ids) if reasoning else 0
    while low < high:
        middle = (low + high + 1) // 2
        if len(completion_text(tokenizer, ids[:middle])) <= length:
            low = middle
        else:
            high = middle - 1
    return low
