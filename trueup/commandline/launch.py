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
from typing import Any


def main() -> int:
    from trueup import console, stage
    from trueup.campaign import resolve
    from trueup.checking.places import processes_of
    from trueup.errors import RunError, TrueupError
    from trueup.launching.processes import CAMPAIGN

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that the folder is removed
    scratch = tempfile.TemporaryDirectory(prefix="trueup-launch-")
    with scratch as folder:
        console.become_launcher(scratch.cleanup)
        stage.quieten()
        text = sys.stdin.read()
        message = json.loads(text)
        campaign = resolve(Path(message["source"]), message["values"])
        name = sys.argv[1]
        file = Path(folder) / CAMPAIGN
        file.touch(mode=0o600)  # it may hold secrets
        file.write_text(text, encoding="utf-8")
        try:
            number, on_cpu = processes_of(campaign, [name, *message["ahead"]])
            stage.refuse_unbuildable(campaign, name, message["ahead"])
            failures = _launch(name, number, Path(folder), on_cpu)
        except TrueupError as error:
            console.report_error(str(error), type(error).__name__)
            return 2
        except KeyboardInterrupt:
            return 130
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    if 2 in codes.values():  # it has said why
        return 2
    if any(code > 0 for code in codes.values()):  # its traceback is in the log; the others died of it
        return 1
    killed = {rank: -code for rank, code in codes.items() if -code != signal.SIGTERM}
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


def _launch(stage: str, number: int, folder: Path, on_cpu: bool) -> dict[int, Any]:
    """Run the stage on so many processes. Returns what failed, by rank."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    from trueup.launching.processes import ON_CPU, SCRATCH

    os.environ |= {SCRATCH: str(folder), ON_CPU: str(on_cpu).lower()}
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(os.environ["OMP_NUM_THREADS"]) // number))
    # In place of the user's own, which may be about other programs.
    (folder / "accelerate.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\n", encoding="utf-8"
    )
    # On a CPU too: accelerate's own launcher starts processes there by MPI alone. Every choice that it would make by
    # itself is made here, since it prints a warning for each.
    options = [f"--config_file={folder / 'accelerate.yaml'}", "--multi_gpu", "--gpu_ids=all", "--main_process_port=0"]
    options += [f"--num_processes={number}", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"]
    try:
        launch_command(launch_command_parser().parse_args([*options, "--module", "trueup.stage", stage]))
    except ChildFailedError as error:
        return error.failures
    except SignalException:
        raise KeyboardInterrupt from None
    return {}


if __name__ == "__main__":
    sys.exit(main())
