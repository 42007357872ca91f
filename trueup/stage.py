"""One stage in a process of its own: `python -m trueup.stage STAGE`, the campaign as JSON on standard input.

Internal: `trueup run` and `trueup STAGE` start this. A fresh process per stage keeps memory clean and lets independent
stages run side by side.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trueup.campaign import Campaign


def main() -> int:
    from trueup import console
    from trueup.campaign import resolve
    from trueup.errors import RunError, TrueupError, of_the_machine
    from trueup.launching import processes
    from trueup.stages import load_object

    several = processes.count() > 1
    console.become_child(errors_alone=processes.rank() > 0)
    quieten()
    message = (
        json.loads(Path(os.environ[processes.SCRATCH], processes.CAMPAIGN).read_text(encoding="utf-8"))
        if several
        else json.load(sys.stdin)
    )
    campaign = resolve(Path(message["source"]), message["values"])
    config = campaign.stages[sys.argv[1]]
    try:
        if not several:  # or what started them has done so
            refuse_unbuildable(campaign, sys.argv[1], message["ahead"])
        load_object(config.run)(config)
    except TrueupError as error:
        console.report_error(str(error), type(error).__name__)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if (sentence := of_the_machine(error)) is None:
            raise
        console.report_error(sentence, RunError.__name__)
        return 2
    return 0


def refuse_unbuildable(campaign: Campaign, stage: str, ahead: list[str]) -> None:
    """A ConfigError with what would stop this stage, or those behind it, if it is one that trains."""
    config = campaign.stages[stage]
    if config.trains or (config.stage == "sft" and ahead):
        from trueup.training.trial import refuse_unbuildable

        refuse_unbuildable(campaign, [config.address, *ahead])


def quieten() -> None:
    """Turn off progress bars of libraries, which would fill the log with control characters."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Spinning idle OpenMP threads take time from the stage beside this one, and stall on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


if __name__ == "__main__":
    sys.exit(main())
