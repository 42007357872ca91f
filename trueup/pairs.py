"""Preference pairs as tokens, for what trains on them: read, chosen, split by prompt, encoded as they were sampled."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from trueup.chat import encode_completion, encode_prompt
from trueup.config import SplitConfig
from trueup.errors import DataError
from trueup.records import Dropped, PairRule, Preference, choose_pairs, is_for_judge, is_heldout, read_rows
from trueup.runs import FinishedStage


@dataclass(frozen=True)
class EncodedPair:
    """A pair in tokens. Completions end with EOS exactly if the answer was finished."""

    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]

    @property
    def longest(self) -> int:
        """Tokens of the prompt and the longer answer."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True)
class Pairs:
    """The pairs of a campaign, parted by the hash of their prompts."""

    train: list[Preference]
    judge: list[Preference]
    """For the second reward model, which judges the comparison and trains nothing else."""
    heldout: list[Preference]


def read_pairs(label: FinishedStage, rule: PairRule, split: SplitConfig) -> Pairs:
    """The pairs of the label stage; a DataError where a part that something is trained on is empty."""
    path = label.dir / "preferences.jsonl"
    pairs = choose_pairs(read_rows(path, Preference), rule)
    heldout = [pair for pair in pairs if is_heldout(pair.prompt, split)]
    judge = [pair for pair in pairs if is_for_judge(pair.prompt, split)]
    train = [pair for pair in pairs if not (is_heldout(pair.prompt, split) or is_for_judge(pair.prompt, split))]
    if not train:
        raise DataError(f"{path}: no pair is left to train on, of {len(pairs)} in all (the others are held out)")
    if split.judge_fraction and not judge:
        raise DataError(f"{path}: no pair falls to the second reward model: raise split.judge_fraction, or set it to 0")
    return Pairs(train, judge, heldout)


def encode_pairs(
    pairs: list[Preference], tokenizer: PreTrainedTokenizerBase, max_length: int, dropped: Dropped
) -> tuple[list[Preference], list[EncodedPair]]:
    """The pairs that fit, and their tokens. One that does not is dropped whole: cutting one side would bias it."""
    kept, encoded = [], []
    for pair in pairs:
        row = EncodedPair(
            encode_prompt(tokenizer, pair.prompt),
            # What was sampled, token by token: re-encoding its text may cut the words at other places.
            pair.chosen_token_ids
            or encode_completion(tokenizer, pair.prompt, pair.chosen[0].content, pair.chosen_finished),
            pair.rejected_token_ids
            or encode_completion(tokenizer, pair.prompt, pair.rejected[0].content, pair.rejected_finished),
        )
        if row.longest > max_length:
            dropped.add("longer than max_length")
        else:
            kept.append(pair)
            encoded.append(row)
    return kept, encoded
