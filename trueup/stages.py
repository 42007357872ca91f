"""The one table of a campaign's stages, and the only place in `trueup` that names the packages of stages; and where a
stage of a further round lies.

The names are strings, which are imported on use. So `trueup` stays below the packages of the stages, a campaign is
planned without torch, and `--help` loads nothing that takes time.
"""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class StageEntry:
    does: str
    """What the stage does, for the help text."""
    folder: str
    """Its folder in the run directory."""
    config: str
    """`module:name` of its schema, which names the code of the stage; a mapping there is a choice by `algorithm`."""
    none: str | None = None
    """`module:name` of the schema that takes its place if the section is `none`, or not there; only for a stage that a
    campaign may leave out."""


STAGES = {
    "sft": StageEntry(
        "instruction-tune the base model on demonstrations, or with `none` take it as it is",
        "sft",
        "sft.config:SFTConfig",
        none="sft.config:StartConfig",
    ),
    "sample": StageEntry("sample candidate answers from the SFT policy", "candidates", "sft.config:SampleConfig"),
    "label": StageEntry(
        "collect preferences: from people, a rubric, a file or a judge", "labels", "ui.labels.config:LabelConfig"
    ),
    "reward": StageEntry("train the reward model and write its report card", "reward", "reward.config:RewardConfig"),
    "align": StageEntry("align the SFT policy to the preferences", "align", "rlhf.align.config:ALGORITHMS"),
    "compare": StageEntry(
        "compare SFT and aligned policies on held-out prompts", "compare", "rlhf.compare.config:CompareConfig"
    ),
}
"""The stages in their order, by name: the command, and the section of the campaign file."""

COMMANDS = ("reward.commands:COMMANDS", "ui.commands:COMMANDS")
"""`module:name` of each package's commands, by name (trueup.commandline.commands.Command). A command with the name of a
stage replaces the stage's own; a name of two words is a further command of the first."""


def load_object(name: str) -> Any:
    """The object with this `module:name`."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


# ---- Rounds -----------------------------------------------------------------------------------------------------

OF_EVERY_ROUND = tuple(STAGES)[1:]
"""The stages that every round has. SFT is of the campaign."""
ROUNDS = 99
"""The most rounds that a campaign has."""
_ROUND = re.compile("round-([2-9]|[1-9][0-9])")


def round_of(run_dir: Path) -> int:
    """The number of the round whose folder this is. The run directory itself is the first one's."""
    match = _ROUND.fullmatch(run_dir.name)
    return int(match[1]) if match else 1


def campaign_dir(run_dir: Path) -> Path:
    """The campaign's run directory, from a round's."""
    return run_dir.parent if round_of(run_dir) > 1 else run_dir


def round_dir(run_dir: Path, number: int) -> Path:
    """A round's folder, from that of any round: each further round has one within the campaign's run directory."""
    campaign = campaign_dir(run_dir)
    return campaign / f"round-{number}" if number > 1 else campaign


def round_dirs(run_dir: Path) -> list[Path]:
    """The folders of a campaign's rounds, in order, as far as there are any."""
    paths = [path for path in campaign_dir(run_dir).glob("round-*") if path.is_dir()]
    numbers = sorted(number for path in paths if (number := round_of(path)) > 1)
    return [round_dir(run_dir, number) for number in (1, *numbers)]


def title_of(run_dir: Path) -> str:
    """`demo`, or `demo, round 2`: the name of a run on its pages."""
    path, number = run_dir.resolve(), round_of(run_dir)
    return f"{campaign_dir(path).name}, round {number}" if number > 1 else path.name


def stages_of(run_dir: Path) -> list[str]:
    """The names of the stages of all rounds that have a folder, in order."""
    further = [address(round_of(folder), stage) for folder in round_dirs(run_dir)[1:] for stage in OF_EVERY_ROUND]
    return [*STAGES, *further]


def address(number: int, stage: str) -> str:
    """A stage's name in the campaign: `align` in the first round, `round-2/align` in the second."""
    return f"round-{number}/{stage}" if number > 1 and stage in OF_EVERY_ROUND else stage


_NAME = re.compile(rf"(round-[1-9][0-9]?/)?({'|'.join(STAGES)})")


def is_stage(name: str) -> bool:
    """Whether this is a stage's name, which a file of somebody else's run may say of anything."""
    return _NAME.fullmatch(name) is not None


def place(run_dir: Path, stage: str) -> tuple[Path, str]:
    """(round's folder, stage) of a stage's name, as seen from the round in `run_dir`: a bare name is of the same round,
    `round-1/align` of that one, and `sft` of the campaign."""
    number, _, name = stage.rpartition("/")
    if number:
        return round_dir(run_dir, int(number.removeprefix("round-"))), name
    return (run_dir if name in OF_EVERY_ROUND else campaign_dir(run_dir)), name


def command(run_dir: Path, stage: str) -> str:
    """`trueup label CONFIG --round 2`: what runs a stage, as seen from the round in `run_dir`."""
    folder, name = place(run_dir, stage)
    number = round_of(folder)
    return f"trueup {name} CONFIG" + (f" --round {number}" if number > 1 else "")


def address_from(run_dir: Path, stage: str) -> str:
    """The name in the campaign of what a stage of the round in `run_dir` calls `stage`."""
    folder, name = place(run_dir, stage)
    return address(round_of(folder), name)
