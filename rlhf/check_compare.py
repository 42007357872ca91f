"""What `trueup check` finds in the keys of the comparison."""

from __future__ import annotations

import os
from collections.abc import Mapping

from rlhf.checks import prompts_of
from rlhf.config import CompareConfig
from trueup.config import StageConfig
from trueup.records import Prompt
from trueup.runs import find_stage
from trueup.votes import VOTES


def check(
    config: CompareConfig,
    stages: Mapping[str, StageConfig],
    sampled: list[Prompt] | None,
    problems: list[str],
    notes: list[str],
) -> None:
    """The files of its checks, the other runs, and what its judges want."""
    prompts_of(config, problems)
    for name, run_dir in config.others.items():
        if find_stage(run_dir, "align") is None:
            problems.append(f"compare.others.{name}: {run_dir}: no finished align stage in it")
    if "endpoint" in config.judges and not os.environ.get("OPENAI_API_KEY"):
        notes.append("compare.judges: endpoint: OPENAI_API_KEY is not set; an endpoint that wants a key will refuse")
    if "votes" in config.judges and not (config.run_dir / VOTES).is_file():
        notes.append(
            "compare.judges: votes: nobody has voted yet; people vote on a finished comparison, which then runs again"
        )
