"""Checks that a program can decide: were the instructions followed (IFEval), is the final number right (GSM8K)?

They say nothing of the preference that was aligned to. They are there to see what alignment may have cost.

ifeval  Zhou et al. 2023, https://arxiv.org/abs/2311.07911: rows {prompt, instruction_id_list, kwargs}. Verified by the
        benchmark's own checkers as the `lm-eval` package maintains them. Strict and by prompt: every instruction is
        followed in the answer as it stands, and an empty answer follows none.
gsm8k   Cobbe et al. 2021, https://arxiv.org/abs/2110.14168: rows {question, answer} whose answer ends in `#### number`.
"""

from __future__ import annotations

import functools
import random
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasPath, Field, model_validator

from rlhf.config import CheckConfig
from trueup.artifacts.reports import McNemar, PairedAccuracy
from trueup.checking.rows import ReadFile
from trueup.data.records import Prompt, Row, parse_row, read_jsonl
from trueup.errors import DataError, TrueupError
from trueup.files import Json
from trueup.models.templates.block import budget
from trueup.statistics import intervals

Kind = Literal["ifeval", "gsm8k"]


@dataclass(frozen=True)
class Check:
    """Prompts, and what says whether an answer to one of them is right."""

    kind: Kind
    prompts: list[Prompt]
    verify: Callable[[int, str], bool | None]
    """(index of a prompt, an answer) -> right or not; None where the verifier does not know what the prompt asks."""
    verifier: str
    """What decides, with its version."""
    unsupported: dict[str, int]
    """Prompts whose answers cannot be verified, by the instruction that the verifier lacks."""
    note: str
    """Which prompts of which file these are; its path is in the manifest, since a report may be sent to anybody."""


def load_check(kind: Kind, path: Path, limit: int | None = None, seed: int = 0) -> Check:
    """The check over a file's prompts, or over `limit` of them drawn by `seed`, in the file's order."""
    make = {"ifeval": _ifeval, "gsm8k": _gsm8k}[kind]
    rows = [(f"{path}:{number}", values) for number, values in read_jsonl(path)]
    if not rows:
        raise DataError(f"{path}: no rows, so there is nothing to check")
    note = f"all {len(rows)} prompts of {path.name}"
    if limit is not None and limit < len(rows):
        indices = sorted(random.Random(seed).sample(range(len(rows)), limit))
        rows = [rows[i] for i in indices]
        note = f"{limit} of {note.removeprefix('all ')}, drawn with seed {seed}"
    return make(rows, note)


def verified_files(
    stage: str, checks: Sequence[CheckConfig], seed: int, problems: list[str], thinks: bool
) -> list[ReadFile]:
    """The files of the `checks` of a stage, with their prompts; what cannot be read is told as a problem.

    thinks  the model reasons before it answers
    """
    files: list[ReadFile] = []
    for check in checks:
        try:
            if check.path.is_dir():
                raise DataError(f"{check.path}: is a folder; a file is wanted")
            prompts = load_check(check.kind, check.path, check.limit, seed).prompts
        except TrueupError as error:
            problems.append(f"{stage}.checks: {check.kind}: {error}")
        else:
            key = f"{stage}.checks"
            most = check.max_new_tokens + (budget(check.max_thinking_tokens) if thinks else 0)
            files.append(ReadFile(key, check.path, prompts, max_new_tokens=most))
    return files


# ---- IFEval -----------------------------------------------------------------------------------------------------


class IFEvalRow(Row):
    prompt: str = Field(min_length=1)
    instruction_id_list: list[str] = Field(min_length=1)
    arguments: list[Json] = Field(validation_alias=AliasPath("kwargs"))

    @model_validator(mode="after")
    def _pairs_up(self) -> IFEvalRow:
        if len(self.arguments) != len(self.instruction_id_list):
            raise ValueError(f"{len(self.instruction_id_list)} instructions, but kwargs for {len(self.arguments)}")
        return self


@dataclass(frozen=True)
class Instruction:
    name: str
    follows: Callable[[str], bool] | None
    """Whether a text follows it; None: the verifier does not know this instruction."""


def read_instructions(values: Any, where: str) -> tuple[str, list[Instruction]]:
    """Prompt and instructions of a row of IFEval. `where` (file and line) starts every error."""
    row = parse_row(IFEvalRow, values, where)
    pairs = zip(row.instruction_id_list, row.arguments, strict=True)
    return row.prompt, [_instruction(name, kwargs, where) for name, kwargs in pairs]


def instruction_verdicts(instructions: Sequence[Instruction], text: str) -> list[bool | None]:
    """Whether the text follows each instruction, strictly; None where the verifier does not know the instruction."""
    return [None if one.follows is None else bool(text.strip()) and one.follows(text) for one in instructions]


def _ifeval(rows: list[tuple[str, Any]], note: str) -> Check:
    tasks = [read_instructions(values, where) for where, values in rows]
    prompts = [parse_row(Prompt, {"prompt": text}, where) for (where, _), (text, _) in zip(rows, tasks, strict=True)]
    unsupported = Counter(
        name for _, instructions in tasks for name in {one.name for one in instructions if one.follows is None}
    )

    def verify(index: int, text: str) -> bool | None:
        # One unknown instruction leaves the prompt open even if another is not followed: counted as wrong where it
        # is wrong and left out where it may be right, such prompts would pull the accuracy down.
        verdicts = instruction_verdicts(tasks[index][1], text)
        return None if None in verdicts else all(verdicts)

    return Check("ifeval", prompts, verify, f"lm-eval {version('lm_eval')}", dict(unsupported), note)


def _instruction(name: str, kwargs: Json, where: str) -> Instruction:
    checker = _checkers().get(name)
    if checker is None:
        return Instruction(name, None)
    verifier = checker(name)
    # The hub's copy spells out every key.
    arguments = {key: value for key, value in kwargs.items() if value is not None}
    keys = set(verifier.get_instruction_args_keys())
    if set(arguments) != keys:
        names = ", ".join(sorted(arguments)) or "none"
        raise DataError(f"{where}: kwargs of {name}: wants {', '.join(sorted(keys)) or 'none'}, found {names}")
    chance = random.getstate()
    try:
        verifier.build_description(**arguments)
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: kwargs of {name}: {error}") from None
    if random.getstate() != chance:
        # A value that the checker cannot take it replaces by one drawn at random, and says nothing: asked for the
        # letters "#" or "!", as two rows of the benchmark are, it counts some other one.
        random.setstate(chance)
        listing = ", ".join(f"{key} {value!r}" for key, value in arguments.items())
        return Instruction(f"{name} ({listing})", None)
    return Instruction(name, verifier.check_following)


@functools.cache
def _checkers() -> Mapping[str, Any]:
    """The verifier's checkers by the name of their instruction, made deterministic and independent of the network."""
    try:
        import langdetect
        import nltk
        import punkt
        from nltk.tokenize.punkt import PunktParameters, save_punkt_params
    except ImportError as error:
        raise TrueupError(f"IFEval's verifier is not installed ({error.name}): pip install -e '.[checks]'") from None
    langdetect.DetectorFactory.seed = 0  # it samples; unseeded, the same text may change its language
    # Sentences are split by NLTK, which would download its model of English. The same model comes in a package.
    source, model = punkt.load_model("english"), PunktParameters()
    model.abbrev_types, model.collocations = set(source.abbrev_types), set(source.collocations)
    model.sent_starters = set(source.sent_starters)
    model.ortho_context.update(source.ortho_context)
    nltk.data.path.insert(0, _nltk_data().name)
    folder = Path(_nltk_data().name, "tokenizers", "punkt_tab", "english")
    folder.parent.mkdir(parents=True)
    save_punkt_params(model, str(folder))
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    return INSTRUCTION_DICT


@functools.cache
def _nltk_data() -> tempfile.TemporaryDirectory[str]:
    """A folder that lives as long as the process: NLTK reads from it when it first splits a text."""
    return tempfile.TemporaryDirectory(prefix="trueup-nltk-")


# ---- GSM8K ------------------------------------------------------------------------------------------------------


class GSM8KRow(Row):
    question: str = Field(min_length=1)
    answer: str


_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]])[-−]\$?|\$-)?"  # in `10-5` it is an operator
    r"(?P<value>\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:/(?P<over>0*[1-9]\d*))?"
)
_MARK = "####"
_DIGITS = 100
"""A longer number is a model that repeats itself; Python refuses to read one of thousands of digits."""


def final_number(text: str) -> Fraction | None:
    """The number that a text ends with: after its last `####` the first one, without that mark the last one.

    `$1,234.50.` is 1234.5, `-7` and `−7` are -7, `3/4` is 0.75; units, signs of currency and percent do not count. The
    rule is the reference's mark, and for everything else what lm-evaluation-harness calls flexible extraction. Of the
    7,473 worked answers of GSM8K's training file without their marked line it reads 97 % right; the others go on after
    their result (`100 pages in 2 days`).
    """
    _, mark, after = text.rpartition(_MARK)
    matches = list(_NUMBER.finditer(after)) if mark else []
    number = matches[0] if matches else next(reversed(list(_NUMBER.finditer(text))), None)
    if number is None or len(number[0]) > _DIGITS:
        return None
    value = Fraction(number["value"].replace(",", "")) / int(number["over"] or 1)
    return -value if number["minus"] else value


def _gsm8k(rows: list[tuple[str, Any]], note: str) -> Check:
    prompts, numbers = [], []
    for where, values in rows:
        row = parse_row(GSM8KRow, values, where)
        number = final_number(row.answer.rpartition(_MARK)[2]) if _MARK in row.answer else None
        if number is None:
            raise DataError(f"{where}: answer: no number after {_MARK}; found {row.answer[-60:]!r}")
        prompts.append(parse_row(Prompt, {"prompt": row.question}, where))
        numbers.append(number)
    return Check("gsm8k", prompts, lambda i, text: final_number(text) == numbers[i], "last number", {}, note)


# ---- Two policies -----------------------------------------------------------------------------------------------


def paired_accuracy(
    sft: Sequence[bool | None], aligned: Sequence[bool | None], confidence: float = 0.95
) -> PairedAccuracy:
    """Accuracy of both policies on the same prompts, and whether they differ by more than chance.

    sft, aligned  (P,) right or not; None: not verifiable, which leaves the prompt out on both sides

    McNemar's test in its exact form (https://doi.org/10.1007/BF02295996): only prompts that exactly one policy got
    right speak, and were both equally good, each of them would be a fair coin. Accuracies have Wilson's interval.
    """
    from scipy.stats import binomtest

    both = [(r, a) for r, a in zip(sft, aligned, strict=True) if r is not None and a is not None]
    counts = Counter(both)
    only_sft, only_aligned = counts[True, False], counts[False, True]
    apart = only_sft + only_aligned
    right = [sum(pair[side] for pair in both) for side in (0, 1)]
    return PairedAccuracy(
        sft=intervals.wilson(right[0], len(both), confidence).estimate(),
        aligned=intervals.wilson(right[1], len(both), confidence).estimate(),
        mcnemar=McNemar(
            p_value=float(binomtest(only_aligned, apart).pvalue) if apart else 1.0,
            both=counts[True, True],
            only_sft=only_sft,
            only_aligned=only_aligned,
            neither=counts[False, False],
        ),
        unverified=len(sft) - len(both),
    )
