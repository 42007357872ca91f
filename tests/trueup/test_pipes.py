"""Output that nobody reads any more, as after `trueup check CONFIG | head -1`, ends a command without a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
CONFIG = "name: mine\nmodel: {name: ./no-model}\nsft: {data: [starter]}\nsample: {prompts: starter}\n"
COMMANDS = {
    "check": ("check", "mine.yaml"),
    "status": ("status", "mine.yaml"),
    "keys": ("keys",),
    "a plan": ("run", "mine.yaml", "--plan"),
    "an error": ("status", "no-such.yaml"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_pipe_ends_a_command_quietly_with_the_exit_code_of_the_signal(command: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(CONFIG)
    reader, writer = os.pipe()
    os.close(reader)
    is_error = command == "an error"
    process = subprocess.run(
        [sys.executable, "-m", "trueup", *COMMANDS[command]],
        stdout=subprocess.PIPE if is_error else writer,
        stderr=writer if is_error else subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=280,
    )
    os.close(writer)
    assert (process.returncode, process.stdout or b"", process.stderr or b"") == (141, b"", b"")


def test_a_broken_pipe_elsewhere_is_a_bug_and_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "import trueup.cli as c\ndef fail(*_): raise BrokenPipeError(32, 'elsewhere')\nc._keys = fail\nc.main(['keys'])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert process.returncode == 1 and process.stderr.endswith("BrokenPipeError: [Errno 32] elsewhere\n")
