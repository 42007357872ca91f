"""Checks by `trueup check` of the keys of the sft and sample stages, and of the rows that they read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sft.config import DataSource, SampleConfig, SFTConfig, StartConfig
from sft.data import read_source, unknown_kinds
from trueup.checking.rows import CHECKED_ROWS, TOO_MANY_DROPPED, ReadFile, Rows, check_context, read_file
from trueup.config import Stages
from trueup.data.duplicates.exams import on_exams
from trueup.data.duplicates.training import near_heldout_prompts
from trueup.data.formats import read_prompts
from trueup.data.records import Demonstration, Dropped, Prompt, random_rows
from trueup.data.split import is_for_judge, is_heldout, question, split_name, touches_heldout
from trueup.errors import DataError
from trueup.inspecting.kinds import is_named, kind_of

FEW_DEMONSTRATIONS = 8

# ---- sft --------------------------------------------------------------------------------------------------------


def check_sft(config: SFTConfig, stages: Stages, problems: list[str], notes: list[str]) -> list[ReadFile]:
    """The files of demonstrations: all of them, or none if one cannot be read."""
    files: list[ReadFile] = []
    for source in config.data:

        def read(path: Path, dropped: Dropped, *_: Any, source: DataSource = source) -> Sequence[Demonstration]:
            return read_source(source, config.seed, dropped)

        if file := read_file("sft.data", source.path, read, source, config.seed, problems, notes):
            files.append(file)
    return files if len(files) == len(config.data) else []  # figures of a part would mislead


def check_start(config: StartConfig, stages: Stages, problems: list[str], notes: list[str]) -> list[ReadFile]:
    """What takes the place of SFT; there are no files of demonstrations."""
    notes.append(config.remark)
    return []


def check_demonstrations(config: SFTConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that there are enough demonstrations to train on, and that they are short enough."""
    if config.train_on == "all":
        _check_all_trained(rows, problems, notes)
    if config.mask_note:
        notes.append(config.mask_note)
    demonstrations = rows.of("sft.data")
    if demonstrations is None:
        return
    train = [row for row in demonstrations if not touches_heldout(row, config.split)]
    if config.leave_out:
        kinds = {id(row): kind_of(row.category, question(row.messages)) for row in demonstrations}
        problems += unknown_kinds(config.leave_out, kinds.values())
        train = [row for row in train if not is_named(kinds[id(row)], config.leave_out)]
    if lengths := rows.tokens(train):
        notes.append(f"model.chat_template: {rows.end_token!r} is trained as the end of every assistant turn")
        _check_too_long(config, train, lengths, rows, problems, notes)
    _count(config, train, demonstrations, rows, notes)
    _check_contamination(config, demonstrations, notes)
    if len(train) < FEW_DEMONSTRATIONS:
        others = len(demonstrations) - len(train)
        what = "held out or left out" if config.leave_out else "held out"
        note = f" ({others} more are {what})" if others else ""
        problems.append(f"sft.data: {len(train)} demonstrations to train on{note}; {FEW_DEMONSTRATIONS} is the least")


def _count(
    config: SFTConfig, train: list[Demonstration], demonstrations: list[Demonstration], rows: Rows, notes: list[str]
) -> None:
    """Say how many demonstrations are trained on, and what these counts leave out of account."""
    others = len(demonstrations) - len(train)
    what = "held out or left out (sft.leave_out)" if config.leave_out else "held out"
    limits = ["near-duplicates, which are not counted here, are left out later"] * (
        "drop" in (config.split.near_duplicates, config.near_duplicates)
    )
    if any(file.is_drawn for file in rows.files if file.key == "sft.data"):
        limits.append(f"of a large file only the {CHECKED_ROWS} drawn rows count")
    notes.append("; ".join([f"sft.data: {len(train)} demonstrations to train on, {others} {what}", *limits]))


def _check_contamination(config: SFTConfig, demonstrations: list[Demonstration], notes: list[str]) -> None:
    """Add a note if demonstrations have words of a held-out prompt or of a check."""
    try:
        sentence = on_exams(demonstrations, config.checked_files, config.split)
    except DataError:
        return  # what is wrong with the file of a check is told of the comparison
    if sentence:
        notes.append(f"sft.contamination: {config.contamination}: {sentence}")


def _check_all_trained(rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Take rows out, or add a problem, that keep a turn out of training, where every token is to be trained."""
    from trueup.models.encoding import named, trains_every_turn

    for file in (file for file in rows.files if file.key == "sft.data"):
        if bad := [row.where for row in file.rows if not trains_every_turn(row)]:
            drops = file.on_bad_rows == "drop" and len(bad) < len(file.rows)
            (notes if drops else problems).append(
                f"sft.train_on: all trains every token, and {len(bad)} of {len(file.rows)} demonstrations have turns "
                f"that are not to be learnt{', and are dropped' if drops else ''}: {named(bad)}"
            )
        file.rows = [row for row in file.rows if trains_every_turn(row)]


def _check_too_long(
    config: SFTConfig,
    train: list[Demonstration],
    lengths: list[int],
    rows: Rows,
    problems: list[str],
    notes: list[str],
) -> None:
    from trueup.models.encoding import fit, named

    limit = config.max_length
    over = [row for row in train if max(rows.tokens([row]), default=0) > limit]
    if not over:
        notes.append(f"sft.max_length: {limit}; the longest demonstration has {max(lengths)} tokens")
        return
    fitted = [fit(rows.tokenizer, row, config.fitting) for row in over]
    gone = [one.whole.where for one in fitted if not one.parts]
    of = f"of {len(lengths)} demonstrations are longer than {limit} tokens"
    if len(gone) < len(over):
        became = {
            "cut": f"cut, {sum(one.tokens_cut for one in fitted)} tokens in all",
            "split": f"split into {sum(len(one.parts) for one in fitted)} dialogues without "
            f"{sum(one.exchanges_left_out for one in fitted if one.parts)} exchanges that do not fit by themselves",
        }[config.overlong]
        idle = sum(one.turns_left_out for one in fitted if one.parts)
        more = f"; {idle} turns that no learnt answer follows are left out" if idle else ""
        notes.append(f"sft.overlong: {len(over) - len(gone)} {of} and are {became}{more}")
    if gone:
        (problems if len(gone) / len(lengths) > TOO_MANY_DROPPED else notes).append(
            f"sft.max_length: {len(gone)} {of} and are dropped; the longest has {max(lengths)}: {named(gone)}"
        )


# ---- sample -----------------------------------------------------------------------------------------------------


def check_sample(config: SampleConfig, stages: Stages, problems: list[str], notes: list[str]) -> list[ReadFile]:
    """The file of prompts, with those that the stage will answer."""
    file = read_file("sample.prompts", config.prompts_path, read_prompts, config, config.seed, problems, notes)
    if file is None:
        return []
    by_id = {row.prompt_id: row for row in file.rows}
    near = {} if config.only else near_heldout_prompts(by_id, config.split)
    prompts = [row for prompt_id, row in by_id.items() if prompt_id not in near]
    if config.only:
        prompts = [row for row in prompts if split_name(row.prompt, config.split) == config.only]
    file.rows, file.max_new_tokens = list(random_rows(prompts, config.max_prompts, config.seed)), config.most_tokens
    return [file]


def check_prompts(config: SampleConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that the prompts leave room for answers, and that each part of the split has some."""
    prompts = rows.of("sample.prompts")
    if prompts is None:
        return
    check_context("sample.max_new_tokens", rows.tokens(prompts), config.most_tokens, rows, problems)
    is_labelled = "label" in stages and "sample" in stages["label"].parents()
    _check_split(config, prompts, is_labelled, problems, notes)


def _check_split(
    config: SampleConfig, prompts: list[Prompt], is_labelled: bool, problems: list[str], notes: list[str]
) -> None:
    """Check that there are prompts to compare on, to train on, and for a second reward model."""
    split, limit = config.split, config.max_prompts
    of = f"{len(prompts)} prompts" + (f" (sample.max_prompts: {limit})" if limit == len(prompts) else "")
    heldout = sum(is_heldout(row.prompt, split) for row in prompts)
    judge = sum(is_for_judge(row.prompt, split) for row in prompts)
    if heldout == 0:
        problems.append(
            f"sample.prompts: none of {of} is held out (split.heldout_fraction: {split.heldout_fraction}), so there is "
            "nothing to compare on"
        )
    if not is_labelled:
        return
    if config.only == "heldout":
        problems.append("sample.only: heldout leaves no training prompt to label; it is for label.source: import")
    elif heldout == len(prompts):
        problems.append(f"sample.prompts: all {of} are held out, so there is none to label")
    elif heldout + judge == len(prompts):
        problems.append(
            f"sample.prompts: of {of} {heldout} are held out and {judge} are for the second reward model "
            f"(split.judge_fraction: {split.judge_fraction}), so there is none to train on"
        )
    elif split.judge_fraction and not judge:
        problems.append(
            f"sample.prompts: none of {of} is for the second reward model (split.judge_fraction: "
            f"{split.judge_fraction}): give more prompts, or raise it, or set it to 0"
        )
    else:
        apart = f", {judge} for the second reward model" if judge else ""
        notes.append(f"split: {len(prompts) - heldout - judge} prompts to train on{apart}, {heldout} held out")
