"""How long somebody waits from `trueup label` on a fresh directory until the first pair is on the screen.

    python benchmarks/first_pair.py              three times, on the embedded model without SFT
    python benchmarks/first_pair.py --runs 1

Each time `trueup label` starts on a campaign in which nothing has run: it takes the model over, starts to sample the
starter prompts (four answers of up to 256 tokens, the defaults), and prints its link. A Chromium that is open already
follows the link. The clock runs from the start of the command until the pair can be judged. Exit code 1 if the bar is
missed.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from labelling import TRUEUP, hardware, verdict
from trueup import runs

BAR_S = 60
CAMPAIGN = {
    "name": "first-pair",
    "sft": "none",
    "sample": {"prompts": "starter"},
    "label": {"source": "human"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium found: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        taken = [first_pair(chromium) for _ in range(options.runs)]
        print(f"Chromium {chromium.version} headless; {hardware(argparse.Namespace(database=None))}")
        chromium.close()
    return 0 if verdict(f"the first pair within {BAR_S} s", max(taken) <= BAR_S) else 1


def first_pair(chromium: Any) -> float:
    """Seconds from the start of the command until the first pair can be judged."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    with tempfile.TemporaryDirectory(prefix="trueup-benchmark-") as name:
        folder = Path(name)
        file = folder / "campaign.yaml"
        file.write_text(yaml.safe_dump({**CAMPAIGN, "run_dir": str(folder / "run")}), encoding="utf-8")
        started = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", TRUEUP, "label", str(file), "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        try:
            page.goto(link(process))
            linked = time.perf_counter() - started
            page.wait_for_selector(".tu-label[data-state=ready]", timeout=600_000)
            taken = time.perf_counter() - started
            answered = (runs.stage_dir(folder / "run", "sample") / runs.ANSWERED).read_bytes().count(b"\n")
            print(
                f"first pair after {taken:.1f} s (the page after {linked:.1f} s; {cpu_s(process.pid):.1f} s of "
                f"processor time); {answered} prompts were answered by then"
            )
        finally:
            page.close()
            process.send_signal(signal.SIGINT)
            process.wait(60)
    return taken


def link(process: subprocess.Popen[str]) -> str:
    """The link that the command prints."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"open (http://\S+)", line):
            return found[1]
    raise SystemExit(f"`trueup label` printed no link:\n{said}")


def cpu_s(pid: int) -> float:
    """Processor time of a process and of all that it started."""
    process = psutil.Process(pid)
    times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
    return sum(one.user + one.system + one.children_user + one.children_system for one in times)


if __name__ == "__main__":
    sys.exit(main())
