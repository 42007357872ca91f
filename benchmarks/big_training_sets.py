"""How much memory and time does SFT take for a large file, from its rows to batches of tokens?

    python benchmarks/big_training_sets.py [MILLIONS] [--endings .jsonl .parquet]

It writes so many million demonstrations (1; about 270 bytes and 70 tokens each) to a temporary folder, and reads each
file twice, in a process of its own with an empty cache, as the SFT stage does: rows, split, tokens by the embedded
model's template, then the order of an epoch and its first 1,000 batches. No model is loaded. It prints the seconds of
the first start and of the second, and the peak of the memory that is the process's own (`RssAnon`) and of all of it
(`VmHWM`, with pages of the files on disk, which the system takes back when it needs them), above that of a process
that reads one row.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from itertools import islice
from pathlib import Path

from big_files import write_jsonl, write_parquet

WRITERS = {".jsonl": write_jsonl, ".parquet": write_parquet}
BATCHES, ROWS = 1_000, 16


def main() -> None:
    if sys.argv[1:2] == ["--read"]:
        return read(Path(sys.argv[2]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("millions", nargs="?", type=float, default=1.0)
    parser.add_argument("--endings", nargs="+", default=[".jsonl", ".parquet"], choices=WRITERS)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    options = parser.parse_args()
    count = int(options.millions * 1e6)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(f"{count:,} rows\n\n| file | MB | start | s | CPU s | own MiB | all MiB |\n|---|---|---|---|---|---|---|")
        for ending in options.endings:
            (folder / "one").mkdir(exist_ok=True)
            small = WRITERS[ending](folder / "one" / f"rows{ending}", 1)
            base = started(small, folder / "cache-one", options.overrides)
            path = WRITERS[ending](folder / f"rows{ending}", count)
            for start in ("first", "second"):
                one = started(path, folder / f"cache{ending}", options.overrides)
                assert one["rows"] > 0.7 * count, f"{one['rows']} of {count} rows are trained on"
                own, whole = ((one[name] - base[name]) / 2**10 for name in ("own", "all"))
                size = path.stat().st_size / 1e6
                seconds = f"{one['seconds']:,.0f} | {one['cpu']:,.0f}"
                print(f"| {ending} | {size:,.0f} | {start} | {seconds} | {own:,.0f} | {whole:,.0f} |", flush=True)
            path.unlink()
    return None


def started(path: Path, cache: Path, overrides: list[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--read", str(path), *overrides]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "SETS": str(cache)}
    )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def read(path: Path) -> None:
    """What a process of its own does."""
    from sft.config import SFTConfig
    from sft.data import read_data
    from trueup import runs
    from trueup.campaign import load_campaign
    from trueup.models import loading
    from trueup.training.batches import LengthGrouped

    campaign = Path(__file__).parents[1] / "configs" / "demo.yaml"
    with tempfile.TemporaryDirectory() as run:
        overrides = [f"sft.data=[{path}]", f"run_dir={run}/run", *sys.argv[3:]]
        config = load_campaign(campaign, overrides).stages["sft"]
        assert isinstance(config, SFTConfig)
        stage, tokenizer = runs.begin(config), loading.load_base_tokenizer(config.model)  # from the user's cache
        os.environ["TRUEUP_CACHE"] = os.environ["SETS"]
        peak = Peak()
        began, cpu = time.perf_counter(), time.process_time()
        data = read_data(config, stage, tokenizer)
        stage.trained_on_openings(data.tokens.openings[data.train], data.questions)
        rows = data.tokens.training_rows(data.train)
        dataset = rows.dataset()
        for batch in islice(LengthGrouped(ROWS, rows.lengths, seed=0, at_once=ROWS), BATCHES):
            dataset[batch]
        result = {"rows": len(rows), "seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
        print(json.dumps({**result, "own": peak.own, "all": peak.all}))


class Peak:
    """The most memory that this process takes from now on, in KiB."""

    def __init__(self) -> None:
        self.own = 0
        threading.Thread(target=self._watch, daemon=True).start()

    @property
    def all(self) -> int:
        return _status("VmHWM")

    def _watch(self) -> None:
        while True:
            self.own = max(self.own, _status("RssAnon"))
            time.sleep(0.1)


def _status(name: str) -> int:
    return int(re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())[1])  # type: ignore[index]


if __name__ == "__main__":
    main()
