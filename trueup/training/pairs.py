"""Preference pairs for the stages that train on them: read, chosen, split by prompt, encoded as they were sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trueup.config import SplitConfig
from trueup.console import say
from trueup.data.criteria import by_criteria, check_known
from trueup.data.duplicates.rows import NEAR_HELDOUT, NearDuplicate
from trueup.data.duplicates.training import near_heldout_prompts
from trueup.data.pairs import PairRule, choose_pairs
from trueup.data.records import IDEALS, Dropped, Message, Preference, Ranking, read_rows
from trueup.data.row_rules import BadRows
from trueup.data.split import is_for_judge, is_heldout
from trueup.errors import DataError
from trueup.models.chat import check_reasoning, encode_completion, encode_prompt, sampled_ids
from trueup.models.config import ModelConfig
from trueup.models.encoding import TOO_LONG, RefusedRows, encode_rows
from trueup.models.templates.choice import set_template
from trueup.models.templates.ends import as_trained
from trueup.runs import FinishedStage, StageRun, find_stage
from trueup.training.annotators import annotator_weights
from trueup.training.config import PreferenceConfig


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
    """The pairs of a campaign, split by the hash of their prompts."""

    train: list[Preference]
    judge: list[Preference]
    """Pairs for the second reward model, which judges the comparison and trains nothing else."""
    heldout: list[Preference]
    """All held-out pairs: the rule that chooses pairs applies to training only."""
    ties: list[Preference]
    """The tied pairs of the prompts to train on."""
    judge_ties: list[Preference]
    """The tied pairs of the prompts for the second reward model."""
    ties_passed_over: int
    """Tied pairs of the prompts to train on that the rule did not choose."""
    ideals: list[Preference]
    """Ideal answers above those that were shown, of the prompts to train on. Held-out ones are no part of the exam:
    their text is no policy's."""
    judge_ideals: list[Preference]
    """The same of the prompts for the second reward model."""
    labelled: list[Preference]
    """All strict pairs of the labels."""
    near_duplicates: list[NearDuplicate]
    """The prompts whose pairs train nothing, since they nearly repeat a held-out prompt."""
    weight_of: dict[str, float]
    """The weight of each annotator's labels; empty: all count alike."""
    on_bad_rows: BadRows = "refuse"
    """The label stage's rule for bad rows. It applies to a pair that the chat template refuses, too."""


def read_pairs(label: FinishedStage, config: PreferenceConfig, tie_rule: PairRule | None = None) -> Pairs:
    """The pairs of the label stage; a DataError if there are none to train on.

    tie_rule  the rule for ties; None: that of the config
    """
    split = config.split
    path = label.dir / "preferences.jsonl"
    labelled, every_tie = read_labelled(label, config)
    ideals = read_ideals(label, config)
    near = near_heldout_prompts({pair.prompt_id: pair for pair in reversed([*labelled, *every_tie, *ideals])}, split)

    def part(name: Part, pairs: list[Preference]) -> list[Preference]:
        return [pair for pair in pairs if pair.prompt_id not in near and part_of(pair.prompt, split) == name]

    chosen = choose_pairs(labelled, config.pairs)
    train, judge = part("train", chosen), part("judge", chosen)
    if not train:
        too_near = f", or {NEAR_HELDOUT}" if near else ""
        raise DataError(
            f"{path}: no pair is left to train on, of {len(labelled)} in all (the others are held out{too_near})"
        )
    if split.judge_fraction and not judge:
        raise DataError(f"{path}: no pair falls to the second reward model: raise split.judge_fraction, or set it to 0")
    tied = choose_ties(every_tie, tie_rule or config.pairs)
    ties = part("train", tied)
    pairs = Pairs(
        train=train,
        judge=judge,
        heldout=part("heldout", labelled),
        ties=ties,
        judge_ties=part("judge", tied),
        ties_passed_over=len(part("train", every_tie)) - len(ties),
        ideals=part("train", ideals),
        judge_ideals=part("judge", ideals),
        labelled=labelled,
        near_duplicates=list(near.values()),
        weight_of=annotator_weights(
            label, config, [*train, *judge, *ties, *part("judge", tied), *part("train", ideals), *part("judge", ideals)]
        ),
        on_bad_rows=label.manifest.identity.get("on_bad_rows", "refuse"),
    )
    if ideals:
        heldout = len(part("heldout", ideals))
        text = f"{len(pairs.ideals)} pairs of ideal answers to train on; {heldout} held out, which train nothing"
        say(f"{'ideals':<12} {text}")
    return pairs


def read_labelled(label: FinishedStage, config: PreferenceConfig) -> tuple[list[Preference], list[Preference]]:
    """The strict pairs and the ties of the labels, in the order of the criteria that the config weighs."""
    strict, ties = (read_rows(label.dir / name, Preference) for name in ("preferences.jsonl", "ties.jsonl"))
    if not config.criteria_weights:
        return strict, ties
    check_known(config.criteria_weights, [*strict, *ties], f"{config.stage}.criteria_weights")
    strict, ties, changes = by_criteria(strict, ties, config.criteria_weights)
    total = " + ".join(f"{weight:g} {name}" for name, weight in config.criteria_weights.items())
    counts = ", ".join(f"{count} {change}" for change, count in changes.items()) or "none changed"
    say(f"{'criteria':<12} pairs in the order of {total}: {counts}")
    return strict, ties


Part = Literal["train", "heldout", "judge"]


def part_of(prompt: list[Message], split: SplitConfig) -> Part:
    """What the pairs of a prompt are for."""
    return "heldout" if is_heldout(prompt, split) else "judge" if is_for_judge(prompt, split) else "train"


def read_ideals(label: FinishedStage, config: PreferenceConfig) -> list[Preference]:
    """Ideal answers above those that were shown, by the rule of the config; none where it asks for none."""
    path = label.dir / IDEALS
    return choose_pairs(read_rows(path, Preference), config.pairs) if config.ideal_answers and path.exists() else []


def choose_ties(ties: list[Preference], rule: PairRule) -> list[Preference]:
    """The tied pairs to train on. Rules that choose pairs of a ranking take ties of a ranking that is nothing but one
    tie, and one of these."""
    if rule == "all":
        return ties
    return list({tie.label_id: tie for tie in reversed(ties) if tie.num_tiers == 1}.values())[::-1]


def weights(pairs: Sequence[Preference]) -> list[float]:
    """The weight of each pair: those of one label weigh 1 together, so that a ranking of K counts once and not
    K (K - 1) / 2 times (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, eq. 1)."""
    counts = Counter(pair.label_id for pair in pairs)
    return [1 / counts[pair.label_id] for pair in pairs]


def encode_pairs(
    pairs: list[Preference],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    dropped: Dropped,
    stage: StageRun | None = None,
    on_bad_rows: BadRows = "refuse",
    with_reasoning: bool = True,
) -> tuple[list[Preference], list[EncodedPair]]:
    """The pairs that fit, and their tokens. A pair that does not fit is dropped whole: cutting one side would bias it.

    with_reasoning  False: the answers alone, as people judged them

    An answer's recorded tokens are a cache of its text. If this tokenizer decodes them to another text (another base
    model, an edited text), the text is encoded, and the recorded log-probability, which belongs to those tokens, is
    left out of the pair. `stage` reports how many, and sets bad rows aside.
    """
    fitting, encoded, refused = [], [], RefusedRows()
    recorded = anew = 0

    def encode(pair: Preference, changes: set[str]) -> tuple[EncodedPair, dict[str, None]]:
        nonlocal recorded, anew
        prompt_ids = encode_prompt(tokenizer, pair.prompt, changes)
        answers, unknown = [], dict[str, None]()
        for side in ("chosen", "rejected"):
            text, finished = getattr(pair, side)[0].content, getattr(pair, f"{side}_finished")
            record, reasoning = getattr(pair, f"{side}_token_ids"), getattr(pair, f"{side}_reasoning")
            if reasoning and not with_reasoning:
                record = None  # the tokens are of both
            elif reasoning:
                text = reasoning + text
            ids = sampled_ids(tokenizer, text, finished, record)
            recorded += bool(record)
            if ids is None:
                anew += bool(record)
                unknown |= {f"{side}_token_ids": None, f"{side}_logp": None}
                check_reasoning(tokenizer, text)
                ids = encode_completion(tokenizer, text, finished, changes)
            answers.append(as_trained(tokenizer, ids))
        return EncodedPair(prompt_ids, *answers), unknown

    for pair, (row, unknown) in encode_rows(pairs, encode, refused, on_bad_rows, dropped, may_be_none=True):
        if row.longest > max_length:
            dropped.add(TOO_LONG)
        else:
            fitting.append(pair.model_copy(update=unknown) if unknown else pair)
            encoded.append(row)
    refused.stop()
    if stage is not None:
        stage.keep_aside(dropped)
        sentences = [f"{count} of {len(pairs)} pairs are {what}" for what, count in refused.changes.items()]
        if anew:
            sentences.append(
                f"{anew} of {recorded} answers with recorded tokens were encoded anew: this tokenizer decodes those "
                "tokens to another text"
            )
        for text in sentences:
            say(f"{'tokens':<12} {text}")
            stage.find("info", "texts_in_tokens", text)
    return fitting, encoded


# ---- Recorded tokens of answers ---------------------------------------------------------------------------------


def true_records(rankings: list[Ranking], run_dir: Path, config: ModelConfig) -> tuple[list[Ranking], str]:
    """The rankings, with recorded tokens and log-probabilities only where the tokens decode to the answer's text; and a
    sentence on the answers that lost theirs, empty if there are none.

    A text may have been edited after sampling (a name taken out), or the tokens may be another model's.
    """
    recorded = sum(bool(ids) for row in rankings for ids in row.completion_token_ids)
    if not recorded:
        return rankings, ""
    tokenizer = _tokenizer_of_run(run_dir, config)
    result, left_out = [], 0
    for row in rankings:
        texts = [a + b for a, b in zip(row.reasonings or [""] * len(row.completions), row.completions, strict=True)]
        ids = [
            record and tokenizer and sampled_ids(tokenizer, text, finished, record)
            for record, text, finished in zip(row.completion_token_ids, texts, row.finished, strict=True)
        ]
        left_out += sum(bool(record) and not one for record, one in zip(row.completion_token_ids, ids, strict=True))
        logps = row.logps and [logp if one else None for logp, one in zip(row.logps, ids, strict=True)]
        result.append(row.model_copy(update={"completion_token_ids": [one or None for one in ids], "logps": logps}))
    why = "the tokenizer of this run decodes them to another text" if tokenizer else "this run has no tokenizer here"
    return result, f"recorded tokens of {left_out} of {recorded} answers are left out: {why}" if left_out else ""


def _tokenizer_of_run(run_dir: Path, config: ModelConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer of the SFT policy, which sampled the answers, or else of a base model in a local directory."""
    sft = find_stage(run_dir, "sft")
    folder = sft.dir / "model" if sft else Path(config.name)
    if not (folder / "tokenizer_config.json").is_file():
        return None
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.trust_remote_code)
    if sft is None:
        set_template(tokenizer, config)
    return tokenizer
