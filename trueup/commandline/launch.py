"""One stage on several processes: `python -m trueup.commandline.launch STAGE`, the campaign as JSON on standard input.

Internal: `trueup run` starts this in place of trueup.stage for a stage that trains, if the campaign has `launch`. What
would stop the stage is looked for first, here and once; then accelerate starts `python -m trueup.stage STAGE` as often
as the campaign asks, and ends them all when one fails.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueup.campaign import Campaign


def main() -> int:
    from trueup import console, stage
    from trueup.campaign import resolve
    from trueup.errors import RunError, TrueupError
    from trueup.launching.processes import CAMPAIGN

    console.become_launcher()
    stage.quieten()
    text = sys.stdin.read()
    message = json.loads(text)
    campaign = resolve(Path(message["source"]), message["values"])
    name = sys.argv[1]
    try:
        number = number_of(campaign)
        stage.refuse_unbuildable(campaign, name, message["ahead"])
        with tempfile.NamedTemporaryFile("w", prefix="trueup-campaign-", suffix=".json") as file:
            file.write(text)
            file.flush()
            failures = _launch(name, number, {CAMPAIGN: file.name, **_environment(campaign)})
    except TrueupError as error:
        console.report_error(str(error), type(error).__name__)
        return 2
    except KeyboardInterrupt:
        return 130
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    if 2 in codes.values():  # it has said why
        return 2
    killed = {rank: -code for rank, code in codes.items() if code < 0 and -code != signal.SIGTERM}
    if killed:
        rank, by = next(iter(killed.items()))
        out_of_memory = " (out of memory?)" if by == signal.SIGKILL else ""
        console.report_error(
            f"process {rank} of {number} was killed by {signal.Signals(by).name}{out_of_memory}, and the others were "
            "stopped with it. The same command continues from the last checkpoint.",
            RunError.__name__,
        )
        return 2
    return 1 if codes else 0


def number_of(campaign: Campaign) -> int:
    """Number of processes; a ConfigError where there is nothing to share."""
    import torch

    from trueup.errors import ConfigError

    gpus = 0 if campaign.config.model.device == "cpu" else torch.cuda.device_count()
    number = campaign.config.processes or gpus
    if number < 2:
        found = "one GPU" if gpus else "no GPU"
        raise ConfigError(
            "launch",
            [
                f"{campaign.config.launch} needs several processes, and there is {found}: leave "
                "launch out, or say processes, which then share what there is"
            ],
        )
    if 0 < gpus < number:
        raise ConfigError("processes", [f"{number} processes need as many GPUs (found {gpus})"])
    return number


def _environment(campaign: Campaign) -> dict[str, str]:
    import torch

    from trueup.launching.processes import ON_CPU

    on_cpu = campaign.config.model.device == "cpu" or not torch.cuda.is_available()
    return {ON_CPU: "true"} if on_cpu else {}


def _launch(stage: str, number: int, environment: dict[str, str]) -> dict[int, Any]:
    """Run the stage on so many processes. Returns what failed, by rank."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.update(environment)
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ["OMP_NUM_THREADS"]) // number))
    # On a CPU too: accelerate's own launcher starts processes there by MPI alone. Every choice that it would make by
    # itself is made here, since it prints a warning for each.
    options = ["--multi_gpu", f"--num_processes={number}", "--num_machines=1", "--main_process_port=0"]
    options += ["--mixed_precision=no", "--dynamo_backend=no", "--module"]
    try:
        launch_command(launch_command_parser().parse_args([*options, "trueup.stage", stage]))
    except ChildFailedError as error:
        return error.failures
    except SignalException:
        raise KeyboardInterrupt from None
    return {}


if __name__ == "__main__":
    sys.exit(main())
