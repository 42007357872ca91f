"""What `trueup check` finds in the keys of the comparison."""

from __future__ import annotations

import os
from pathlib import Path

from rlhf.checks import verified_files
from rlhf.compare.config import CompareConfig
from trueup.checking.rows import ReadFile, Rows, check_context, check_rubric
from trueup.config import Stages
from trueup.errors import ModelError
from trueup.judging.votes import VOTES
from trueup.runs import find_stage


def check(config: CompareConfig, stages: Stages, problems: list[str], notes: list[str]) -> list[ReadFile]:
    """The other runs, what its judges want, and the files of its checks, which are returned."""
    files = verified_files("compare", config.checks, config.seed, problems, config.model.thinking)
    for name, run_dir in config.others.items():
        if problem := _why_not(config, run_dir):
            problems.append(f"compare.others.{name}: {problem}")
    if config.why_these_judges:
        notes.append(f"compare.judges: {', '.join(config.judges)}: {config.why_these_judges}")
    if "rubric" in config.judges and config.rubric:
        check_rubric("compare", config.rubric, problems)
    if "endpoint" in config.judges and not os.environ.get("OPENAI_API_KEY"):
        notes.append("compare.judges: endpoint: OPENAI_API_KEY is not set; an endpoint that wants a key will refuse")
    if "votes" in config.judges and not (config.run_dir / VOTES).is_file():
        notes.append(
            "compare.judges: votes: nobody has voted yet; people vote on a finished comparison, which then runs again"
        )
    return files


def _why_not(config: CompareConfig, run_dir: Path) -> str | None:
    """Why another run cannot be compared with; what would stop the comparison after everything was trained."""
    align = find_stage(run_dir, "align")
    if align is None:
        return f"{run_dir}: no finished align stage in it"
    from rlhf.compare.inputs import why_apart
    from trueup.models.loading import load_base_tokenizer

    try:
        ours = load_base_tokenizer(config.model).get_vocab() if os.path.exists(config.model.name) else None
    except ModelError:  # which is told of the model
        ours = None
    return why_apart(config, align, ours)


def check_rows(config: CompareConfig, stages: Stages, rows: Rows, problems: list[str], notes: list[str]) -> None:
    """Whether the prompts of its checks leave room for answers."""
    for file in rows.files:
        if file.key == "compare.checks":
            key = f"{file.key}: {file.path}"
            check_context(key, rows.tokens(file.rows), file.max_new_tokens, rows, problems)
