"""The one table of a campaign's stages, and the only place in `trueup` that names the packages of stages.

The names are strings, which are imported on use. So `trueup` stays below the packages of the stages, a campaign is
planned without torch, and `--help` loads nothing that takes time.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
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
