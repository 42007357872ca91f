"""Checks by `trueup check` of the keys of the label stage: items besides the samples, sources of labels, the store."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trueup.checking.places import check_place, find_model
from trueup.checking.rows import ReadFile, Rows, check_context, check_rubric, read_file
from trueup.config import Stages
from trueup.data.formats import read_preferences
from trueup.data.records import CandidateSet, Dropped, read_rows
from trueup.data.split import is_for_judge, is_heldout
from trueup.errors import DataError, TrueupError
from trueup.runs import find_stage
from ui.labels.config import LabelConfig
from ui.sources.material import known_answers, read_scores

if TYPE_CHECKING:
    import sqlalchemy as sa


def check(
    config: LabelConfig,
    stages: Stages,
    problems: list[str],
    notes: list[str],
) -> list[ReadFile]:
    """Check pairs with known answers, scores of the samples, the store, the judges; returns imported labels."""
    inputs = config.input_paths()
    imported = config.path and read_file(
        "label.path", config.path, read_preferences, config, config.seed, problems, notes
    )
    for key, path in {"gold": config.gold, "qualification": config.qualification}.items():
        if path in inputs and read_file(f"label.{key}", path, read_preferences, config, None, problems, notes):
            _check_known_answers(key, path, config, problems)
    if config.scores in inputs:
        _check_scores(config.run_dir, config.scores, problems)
    if "judge" in config.sources and not os.environ.get("OPENAI_API_KEY"):
        notes.append("label.source: judge: OPENAI_API_KEY is not set; an endpoint that wants a key will refuse")
    if "human" in config.sources:
        notes.append("label.source: human: the run stops at the label stage until people have labelled")
    if "simulated" in config.sources:
        check_rubric("label", config.rubric, problems)
    if config.store:
        _check_store(config.store_url, problems)
    return [imported] if imported else []


def check_rows(config: LabelConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that imported labels have pairs to train on, not only ties or held-out prompts; and that a reward model
    that labels can read the prompts."""
    if config.scorer:
        _check_what_it_reads(config, rows, problems, notes)
    rankings = rows.of("label.path")
    if rankings is None or config.sources != ["import"]:
        return
    split = config.split
    strict = [row for row in rankings if len({row.completions[tier[0]] for tier in row.tiers if tier}) > 1]
    judge = sum(is_for_judge(row.prompt, split) for row in strict)
    train = sum(not is_heldout(row.prompt, split) for row in strict) - judge
    if not train:
        problems.append(
            f"label.path: no preference to train on: {len(rankings) - len(strict)} of {len(rankings)} rows are ties, "
            f"and {len(strict)} are about prompts that are held out or kept for a second reward model"
        )
    elif split.judge_fraction and not judge:
        problems.append(
            f"label.path: none of {len(strict)} preferences is for the second reward model (split.judge_fraction: "
            f"{split.judge_fraction}): give more, or raise it, or set it to 0"
        )


def _check_known_answers(key: str, path: Path | None, config: LabelConfig, problems: list[str]) -> None:
    assert path is not None  # it is one of the stage's inputs
    try:
        known_answers(config, path, Dropped())
    except DataError as error:
        problems.append(f"label.{key}: {error}")


def _check_scores(run_dir: Path, path: Path, problems: list[str]) -> None:
    sample = find_stage(run_dir, "sample")
    candidates = read_rows(sample.dir / "candidates.jsonl", CandidateSet) if sample else []
    try:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        read_scores(path, candidates)
    except DataError as error:
        problems.append(f"label.scores: {error}")


# ---- Where labels go --------------------------------------------------------------------------------------------


def _check_store(url: sa.URL, problems: list[str]) -> None:
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if os.path.isdir(file):
            problems.append(f"label.store: {file}: is a folder; a file is wanted")
        elif os.path.isfile(file) and file.stat().st_size and file.open("rb").read(15) != b"SQLite format 3":
            problems.append(f"label.store: {file}: is there, and no SQLite database")
        check_place("label.store", file.parent, problems)
    else:
        _check_driver(url, problems)


def _check_driver(url: sa.URL, problems: list[str]) -> None:
    import sqlalchemy as sa

    address = url.render_as_string(hide_password=True)
    try:
        engine = sa.create_engine(url, connect_args={})
        with engine.connect():
            pass
    except ModuleNotFoundError as error:
        problems.append(f"label.store: {address}: needs the Python package {error.name}")
    except Exception as error:
        text = " ".join(str(getattr(error, "orig", error)).split())
        problems.append(f"label.store: {address}: cannot be reached ({text[:200]})")


# ---- A reward model that labels ---------------------------------------------------------------------------------


def _check_what_it_reads(config: LabelConfig, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Check that its own template writes the prompts, and that its context has room for them with an answer."""
    from trueup.models.sources.settings import context_length
    from trueup.training.trial import scorer_of

    assert config.scorer is not None
    if find_model(config.scorer, Path(), [], []) is None:
        return  # it is not on this machine yet, or the check of the model reports what it lacks
    try:
        scorer = scorer_of(config)
    except TrueupError:
        return  # the check of the model reports that
    key = scorer.config.key("name")
    for file in rows.files:
        if file.key == "sample.prompts":
            context = context_length(scorer.settings, scorer.tokenizer)
            as_read = Rows([replace(file, key=key, on_bad_rows="refuse")], context)
            as_read.encode(scorer.tokenizer, problems, notes)
            check_context(key, as_read.tokens(file.rows), file.max_new_tokens, as_read, problems)
