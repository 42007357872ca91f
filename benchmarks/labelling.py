"""How quick, how many at once, and how safe labelling is: the figures of docs/benchmarks.md.

    python benchmarks/labelling.py annotators   100 simulated annotators, one label each 10 s, for 5 minutes
    python benchmarks/labelling.py burst        50 labels a second for 60 s
    python benchmarks/labelling.py kill         100 times kill -9 among concurrent writers
    python benchmarks/labelling.py races        10,000 races for the last slot
    python benchmarks/labelling.py large        100,000 pairs: start of the server, next pair
    python benchmarks/labelling.py import       60,000 rows are imported while 20 people press twice a second in all
    python benchmarks/labelling.py browser      key press to next pair painted, in Chromium
    python benchmarks/labelling.py all          all of them, in this order

On SQLite; `--database postgresql+psycopg://USER@HOST:PORT` takes a PostgreSQL server, in which each benchmark makes a
database of its own and drops it. Every option (`--help`) makes something larger or smaller.

The server is `trueup label` in a process of its own, with sessions, Gradio and the guard; simulated annotators are
asyncio clients in another. Presses come by the clock, whether earlier ones were answered or not, and a press waits
from the moment it was due: a server that stalls cannot slow down its own measurement. Exit code 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import platform
import queue
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import sqlalchemy as sa
import yaml

import chaos
from ui.labels.config import LabelConfig
from ui.labels.store import Store
from ui.labels.tables import slot
from ui.people.accounts import COOKIE

# ---- Simulated annotators ----------------------------------------------------------------------------------------


@dataclass
class Annotator:
    """A browser: it holds the tasks that the server sent ahead, and answers the first."""

    name: str
    client: httpx.AsyncClient
    waiting: asyncio.Queue[dict[str, Any]] = field(default_factory=asyncio.Queue)
    seen: set[str] = field(default_factory=set)

    def take(self, tasks: list[dict[str, Any]]) -> None:
        for task in tasks:
            if task["token"] not in self.seen:
                self.seen.add(task["token"])
                self.waiting.put_nowait(task)


@dataclass
class Load:
    latencies_ms: list[float] = field(default_factory=list)
    """From the moment a press was due until its confirmation, with what comes next, was read."""
    errors: Counter[str] = field(default_factory=Counter)
    said: Counter[chaos.Said] = field(default_factory=Counter)
    seconds: float = 0.0


async def press(annotator: Annotator, due: float, load: Load, draw: random.Random) -> None:
    choice, name = draw.choice([*chaos.CHOICES, "skip"]), str(uuid.uuid4())
    try:
        async with asyncio.timeout(30):
            task = await annotator.waiting.get()
            body = {"client_uuid": name, "token": task["token"], "choice": choice, "seconds": 4.2, "device": "key"}
            response = await annotator.client.post("/api/v1/labels", json=body)
        if response.status_code != 200:
            load.errors[f"status {response.status_code}"] += 1
            return
        told = response.json()
    except (httpx.HTTPError, TimeoutError) as error:
        load.errors[type(error).__name__] += 1
        return
    load.latencies_ms.append(1000 * (time.perf_counter() - due))
    load.said[name, annotator.name, told["label"]["kind"], chaos.said_of(choice, task)] += 1
    annotator.take(told["tasks"])


async def run_load(
    address: str,
    cookies: dict[str, str],
    schedule: list[tuple[float, str]],
    begin: Callable[[], object] = lambda: None,
    over: Callable[[], bool] = lambda: False,
) -> Load:
    """Press at each (second, annotator) of the schedule.

    begin  called when everybody has the page open
    over   once it is true nobody presses any more
    """
    load, draw = Load(), random.Random(0)
    annotators = {}
    for name, cookie in cookies.items():
        headers = {"Cookie": f"{COOKIE}={cookie}"}
        annotators[name] = Annotator(
            name, httpx.AsyncClient(base_url=address, headers=headers, timeout=30, verify=False)
        )
    for one in annotators.values():  # they open the page one after the other, before the clock starts
        one.take((await one.client.get("/api/v1/tasks")).raise_for_status().json()["tasks"])
    begin()
    start = time.perf_counter() + 1.0
    async with asyncio.TaskGroup() as pressing:
        for at, name in sorted(schedule):
            await asyncio.sleep(start + at - time.perf_counter())
            if over():
                break
            pressing.create_task(press(annotators[name], start + at, load, draw))
    load.seconds = time.perf_counter() - start
    for one in annotators.values():
        await one.client.aclose()
    return load


def loaded(what: str, options: argparse.Namespace, schedule: list[tuple[float, str]], bar_ms: float | None) -> bool:
    """Run a schedule against a new campaign and print what came of it."""
    names = {name for _, name in schedule}
    with fresh(options, pairs=len(schedule) + 5 * len(names), words=120) as config, trueup_label(config) as server:
        cookies = chaos.let_in(config.store_url, len(names))
        used = server.cpu_s()
        with Machine(config.run_dir) as machine:
            load = asyncio.run(run_load(server.address, cookies, schedule))
        used = server.cpu_s() - used
        found = chaos.stored(config.store_url)
        lost, added = load.said - found, found - load.said
        problems = chaos.inconsistencies(config.store_url)
    n = len(load.latencies_ms)
    print(f"{what}: {n:,} of {len(schedule):,} presses confirmed in {load.seconds:.0f} s ({n / load.seconds:.1f}/s)")
    print(f"  confirmation: {quantiles(load.latencies_ms)}")
    print(f"  errors {load.errors.total()} {dict(load.errors) or ''}, lost {lost.total()}, not said {added.total()}")
    print(
        f"  events as a multiset: {'as said, exactly' if not lost and not added else 'DIFFER'}; {problems or 'sound'}"
    )
    print(f"  server: {1000 * used / max(n, 1):.1f} ms of CPU a label, {server.peak_mb:.0f} MB at its peak")
    print(f"  the machine meanwhile: {machine}")
    good = verdict("0 errors, exact multiset", not (load.errors or lost or added or problems))
    if bar_ms is not None:
        good &= verdict(f"p95 under {bar_ms:g} ms", quantile(sorted(load.latencies_ms), 0.95) < bar_ms)
    return good


def annotators(options: argparse.Namespace) -> bool:
    draw, pause = random.Random(0), options.pause
    schedule = []
    for number in range(options.annotators):
        first = draw.uniform(0, pause)
        rounds = int(options.seconds // pause)
        schedule += [(first + pause * i, f"ann-{number}") for i in range(rounds)]
    what = f"{options.annotators} annotators, one label each {pause:g} s, {options.seconds} s"
    return loaded(what, options, schedule, bar_ms=150)


def burst(options: argparse.Namespace) -> bool:
    total = options.rate * options.burst_seconds
    schedule = [(i / options.rate, f"ann-{i % 50}") for i in range(total)]
    return loaded(f"burst of {options.rate} labels/s for {options.burst_seconds} s", options, schedule, bar_ms=None)


class Machine(threading.Thread):
    """What this machine does to anybody while a benchmark runs: how late a sleeper wakes up, and how long the disk
    takes to keep 4 kB. A confirmation cannot be quicker than these."""

    def __init__(self, folder: Path):
        super().__init__(daemon=True)
        self.folder, self.over = folder, threading.Event()
        self.late_ms: list[float] = []
        self.disk_ms: list[float] = []

    def run(self) -> None:
        with tempfile.TemporaryFile(dir=self.folder) as file:
            while not self.over.is_set():
                begun = time.perf_counter()
                time.sleep(0.2)
                woken = time.perf_counter()
                os.write(file.fileno(), bytes(4096))
                os.fdatasync(file.fileno())
                self.late_ms.append(1000 * (woken - begun - 0.2))
                self.disk_ms.append(1000 * (time.perf_counter() - woken))

    def __enter__(self) -> Machine:
        self.load = os.getloadavg()[0]
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.load = max(self.load, os.getloadavg()[0])
        self.over.set()
        self.join()

    def __str__(self) -> str:
        late, disk = sorted(self.late_ms), sorted(self.disk_ms)
        parts = [f"{quantile(values, share):.1f}" for values in (late, disk) for share in (0.5, 0.95, 0.99)]
        return (
            f"load up to {self.load:.1f}, sleepers wake up late by p50 {parts[0]}, p95 {parts[1]}, p99 {parts[2]} ms, "
            f"fdatasync takes p50 {parts[3]}, p95 {parts[4]}, p99 {parts[5]} ms"
        )


# ---- Safety ------------------------------------------------------------------------------------------------------


def kill(options: argparse.Namespace) -> bool:
    with fresh(options, pairs=100 * options.rounds, labels_per_pair=8) as config:
        done = chaos.kill_rounds(config, options.rounds, annotators=8)
    print(
        f"kill -9 among 8 concurrent writers, {done.rounds} times: {done.acknowledged:,} labels confirmed, "
        f"{done.resent} presses in flight, of which {done.unconfirmed} had been stored already"
    )
    for problem in done.problems:
        print(f"  {problem}")
    if not done.problems:
        print(f"  confirmed labels that were lost or doubled: {none_of(done.acknowledged)}")
    return verdict("0 lost, 0 doubled, store sound after each", not done.problems)


def races(options: argparse.Namespace) -> bool:
    with database(options) as url:
        done = chaos.races(url, options.races, processes=2, threads=3)
    print(f"{done.races:,} races of {done.contenders} contenders in {done.processes} processes for the last slot:")
    print(f"  {done.labels:,} labels count, {done.late:,} came late and do not")
    for problem in done.problems:
        print(f"  {problem}")
    if not done.problems:
        print(f"  over-collected: {none_of(done.races)}")
    return verdict("0 over-collections", not done.problems)


# ---- 100,000 pairs -----------------------------------------------------------------------------------------------


def large(options: argparse.Namespace) -> bool:
    with fresh(options, pairs=options.pairs, words=60, labels_per_pair=2) as config:
        with trueup_label(config) as server:
            print(f"{options.pairs:,} pairs: first start, which fills the store: {server.started_s:.1f} s")
        cookies = chaos.let_in(config.store_url, 3)
        starts = []
        for _ in range(options.starts):
            with trueup_label(config) as server, chaos.signed_in(server.address, cookies["ann-0"]) as client:
                client.get("/api/v1/tasks").raise_for_status()
                starts.append(time.perf_counter() - server.spawned)
        imports = [_seconds([sys.executable, "-c", "import ui.app"]) for _ in range(options.starts)]
        print(f"  start, from the command to the first pair: {_spread(starts)} s")
        print(f"  of which to import the libraries alone: {_spread(imports)} s")
        _deep(config, options.pairs // 2)
        worst = 0.0
        with trueup_label(config) as server:
            for name, who in (("ann-0", f"who labelled {options.pairs // 2:,}"), ("ann-1", "who is new")):
                with chaos.signed_in(server.address, cookies[name]) as client:
                    begun = time.perf_counter()
                    client.get("/api/v1/tasks").raise_for_status()
                    first = 1000 * (time.perf_counter() - begun)
                    nexts = _press_on(client, options.presses)
                print(f"  {who}: first pairs after a restart {first:.0f} ms; each label and its next pair:")
                print(f"    {quantiles(nexts)}")
                worst = max(worst, quantile(sorted(nexts), 0.95))
    good = verdict("start under 3 s", sorted(starts)[len(starts) // 2] < 3)
    return verdict("next pair under 20 ms (p95)", worst < 20) and good


def _deep(config: LabelConfig, number: int) -> None:
    """The first half of the queue has a label by ann-0, and waits for another by somebody else."""
    store = Store(config.store_url)
    with store.write() as db:
        first = sa.and_(slot.c.slot_no == 0, slot.c.position < number)
        db.execute(slot.update().where(first).values(state="filled", annotator="ann-0", expires_at=None))
    store.close()


def _press_on(client: httpx.Client, number: int) -> list[float]:
    """Milliseconds of each confirmation, one press after the other."""
    tasks, taken = client.get("/api/v1/tasks").json()["tasks"], []
    for _ in range(number):
        body = {"client_uuid": str(uuid.uuid4()), "token": tasks[0]["token"], "choice": "a"}
        begun = time.perf_counter()
        response = client.post("/api/v1/labels", json=body)
        taken.append(1000 * (time.perf_counter() - begun))
        tasks = response.raise_for_status().json()["tasks"]
    return taken


def _seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - begun


def _spread(values: list[float]) -> str:
    values = sorted(values)
    return f"median {values[len(values) // 2]:.2f}, {values[0]:.2f} to {values[-1]:.2f} (n {len(values)})"


# ---- An import while people label ---------------------------------------------------------------------------------


def importing(options: argparse.Namespace) -> bool:
    """`trueup labels import` in a process of its own, and presses on a server that knows nothing of it."""
    names = [f"ann-{i}" for i in range(20)]
    schedule = [(i / options.import_rate, names[i % len(names)]) for i in range(int(1800 * options.import_rate))]
    with fresh(options, pairs=2_500, words=120, labels_per_pair=3) as config, trueup_label(config) as server:
        cookies = chaos.let_in(config.store_url, len(names))
        folder = config.run_dir.parent
        file = folder / "preferences.jsonl"
        write_preferences(file, options.rows)
        command = [sys.executable, "-c", TRUEUP, "labels", "import", str(folder / "campaign.yaml"), str(file)]
        running: list[subprocess.Popen[str]] = []

        def begin() -> None:
            running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))

        with Machine(config.run_dir) as machine:
            load = asyncio.run(
                run_load(server.address, cookies, schedule, begin, lambda: running[0].poll() is not None)
            )
        said, _ = running[0].communicate()
        found = chaos.stored(config.store_url)
        lost, added = load.said - found, found - load.said
        problems = chaos.inconsistencies(config.store_url)
    n, worst = len(load.latencies_ms), max(load.latencies_ms, default=math.nan)
    whole = running[0].returncode == 0 and f"{options.rows} labels imported" in said
    print(f"{options.rows:,} rows imported in {load.seconds:.0f} s, and {n:,} presses meanwhile:")
    print(f"  confirmation: {quantiles(load.latencies_ms)}")
    print(f"  errors {load.errors.total()} {dict(load.errors) or ''}, lost {lost.total()}, not said {added.total()}")
    print(f"  the machine meanwhile: {machine}")
    sound = whole and not (load.errors or lost or added or problems)
    good = verdict("every row imported, every press stored once", sound)
    return verdict("nobody waits for more than 1 s", worst < 1000) and good


def write_preferences(file: Path, rows: int) -> None:
    draw = random.Random(1)
    with file.open("w", encoding="utf-8") as out:
        for number in range(rows):
            chosen, rejected = (" ".join(draw.choices(chaos.WORDS, k=60)) for _ in range(2))
            row = {"prompt": f"Imported question {number}?", "chosen": f"Yes, {chosen}", "rejected": f"No, {rejected}"}
            out.write(json.dumps(row) + "\n")


# ---- In the browser ----------------------------------------------------------------------------------------------

WATCH = """
() => {
  const prompt = document.querySelector(".tu-prompt-text"), page = document.querySelector(".tu-label");
  window.painted = [];
  let pressed = null;
  addEventListener("keydown", (event) => {
    if (page.dataset.state === "ready") pressed = { at: event.timeStamp, prompt: prompt.textContent };
  }, true);
  new MutationObserver(() => {
    if (!pressed || prompt.textContent === pressed.prompt) return;
    const { at } = pressed;
    pressed = null;
    // The first callback runs before the frame that has the new pair, the second after it.
    requestAnimationFrame(() => requestAnimationFrame(() => painted.push(performance.now() - at)));
  }).observe(prompt, { childList: true, subtree: true, characterData: true });
}
"""
CONFIRMED = """
() => performance.getEntriesByType("resource").filter((one) => one.name.endsWith("/api/v1/labels"))
  .map((one) => one.responseEnd - one.startTime)
"""


def browser(options: argparse.Namespace) -> bool:
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        raise SystemExit("no Chromium found: apt-get install chromium")
    draw = random.Random(0)
    with (
        fresh(options, pairs=options.presses + 10, words=120) as config,
        trueup_label(config) as server,
        sync_playwright() as playwright,
    ):
        chromium = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        context = chromium.new_context(viewport={"width": 1280, "height": 800})
        cookie = chaos.let_in(config.store_url, 1)["ann-0"]
        context.add_cookies([{"name": COOKIE, "value": cookie, "url": server.address}])
        page = context.new_page()
        page.goto(f"{server.address}/label")
        page.wait_for_selector(".tu-label[data-state=ready]")
        page.evaluate("performance.setResourceTimingBufferSize(10000)")
        page.evaluate(WATCH)
        for number in range(options.presses):
            page.wait_for_selector(".tu-label[data-state=ready]")
            page.wait_for_timeout(draw.uniform(100, 600))
            page.keyboard.press(draw.choice("123567"))
            page.wait_for_function("(n) => painted.length > n", arg=number, timeout=10_000)
        page.wait_for_selector(".tu-saved[data-saved=yes]")
        painted, confirmed, version = page.evaluate("painted"), page.evaluate(CONFIRMED), chromium.version
        chromium.close()
        labels = chaos.stored(config.store_url).total()
    print(
        f"key press to next pair painted, Chromium {version} headless, {options.presses} labels, 0.25 to 0.75 s apart:"
    )
    print(f"  {quantiles(painted)}")
    print(f"  confirmed by the server: {quantiles(confirmed)}; labels in the store: {labels}")
    good = verdict("every press is stored", labels == options.presses)
    return verdict("p95 under 150 ms", quantile(sorted(painted), 0.95) < 150) and good


# ---- The server --------------------------------------------------------------------------------------------------

TRUEUP = "import sys; from trueup.cli import main; sys.exit(main())"


class Server:
    """`trueup label` over a campaign, on a free port."""

    def __init__(self, config: LabelConfig, environment: Mapping[str, str]):
        folder = config.run_dir.parent
        label = config.model_dump(mode="json", exclude_unset=True, exclude={"model", "split", "run_dir", "stage"})
        values = {
            "name": "benchmark",
            "run_dir": str(config.run_dir),
            "sft": {"data": ["prompts.jsonl"]},
            "sample": {"prompts": "prompts.jsonl"},
            "label": label,
        }
        (folder / "campaign.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
        self.spawned = time.perf_counter()
        self.peak_mb = 0.0
        self.process = subprocess.Popen(
            [sys.executable, "-c", TRUEUP, "label", str(folder / "campaign.yaml"), "--port", "0"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.address = self._announced()
        httpx.get(f"{self.address}/login", timeout=60)  # the address listens already: this waits until it answers
        self.started_s = time.perf_counter() - self.spawned

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def _announced(self) -> str:
        said = ""
        while line := self._lines.get(timeout=600):
            said += line
            if found := re.search(r"http://127\.0\.0\.1:\d+", said):
                return found[0]
        raise RuntimeError(f"`trueup label` said no address:\n{said}")

    def cpu_s(self) -> float:
        """Processor time that the server has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        self.peak_mb = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def trueup_label(config: LabelConfig, environment: Mapping[str, str] = MappingProxyType({})) -> Iterator[Server]:
    server = Server(config, environment)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def database(options: argparse.Namespace) -> Iterator[str]:
    """The URL of an empty database."""
    if not options.database:
        with tempfile.TemporaryDirectory(prefix="trueup-benchmark-") as folder:
            yield f"sqlite:///{folder}/labels.sqlite"
        return
    name = f"trueup_benchmark_{uuid.uuid4().hex}"
    server = sa.make_url(options.database)
    engine = sa.create_engine(server.set(database="postgres"), isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as db:
            db.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
        engine.dispose()


@contextmanager
def fresh(options: argparse.Namespace, pairs: int, **label: Any) -> Iterator[LabelConfig]:
    """A campaign of so many pairs, over an empty database."""
    with database(options) as url, tempfile.TemporaryDirectory(prefix="trueup-benchmark-") as folder:
        yield chaos.campaign(Path(folder), pairs, store=url, **label)


# ---- Figures -----------------------------------------------------------------------------------------------------


def quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def quantiles(values: list[float]) -> str:
    """p50, p95 with its 95 % interval (order statistics, by the normal approximation of the binomial), p99, maximum."""
    ordered, n = sorted(values), len(values)
    half = 1.96 * math.sqrt(0.95 * 0.05 / max(n, 1))
    low, high = (quantile(ordered, min(1.0, max(0.0, 0.95 + sign * half))) for sign in (-1, 1))
    p50, p95, p99 = (quantile(ordered, share) for share in (0.5, 0.95, 0.99))
    most = ordered[-1] if ordered else math.nan
    return f"p50 {p50:.1f}, p95 {p95:.1f} ({low:.1f} to {high:.1f}), p99 {p99:.1f}, max {most:.0f} ms (n {n:,})"


def none_of(trials: int) -> str:
    """What none in so many trials says of the rate (95 %, one-sided, exact)."""
    return f"0 of {trials:,} (with 95 % confidence at most one in {1 / (1 - 0.05 ** (1 / max(trials, 1))):,.0f})"


def verdict(bar: str, met: bool) -> bool:
    print(f"  {bar}: {'met' if met else 'MISSED'}")
    return met


def hardware(options: argparse.Namespace) -> str:
    models = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    cpu = f"{len(models)} x {models[0]}" if models else f"{os.cpu_count()} x {platform.processor()}"
    if options.database:
        engine = sa.create_engine(sa.make_url(options.database).set(database="postgres"))
        with engine.connect() as db:
            server = f"PostgreSQL {db.exec_driver_sql('SHOW server_version').scalar()}"
        engine.dispose()
    else:
        server = f"SQLite {sqlite3.sqlite_version}"
    load = os.getloadavg()[0]
    return f"{cpu} ({platform.machine()}), load {load:.1f}, Python {platform.python_version()}, {server}"


BENCHMARKS: dict[str, Callable[[argparse.Namespace], bool]] = {
    "annotators": annotators,
    "burst": burst,
    "kill": kill,
    "races": races,
    "large": large,
    "import": importing,
    "browser": browser,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=[*BENCHMARKS, "all"])
    parser.add_argument("--database", metavar="URL", help="a PostgreSQL server; without it, SQLite")
    parser.add_argument("--annotators", type=int, default=100)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds between two labels of an annotator")
    parser.add_argument("--seconds", type=int, default=300, help="of `annotators`")
    parser.add_argument("--rate", type=int, default=50, help="of `burst`, labels a second")
    parser.add_argument("--burst-seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=100, help="of `kill`")
    parser.add_argument("--races", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=100_000, help="of `large`")
    parser.add_argument("--rows", type=int, default=60_000, help="of `import`")
    parser.add_argument("--import-rate", type=float, default=2.0, help="of `import`, presses a second")
    parser.add_argument("--starts", type=int, default=5, help="of `large`")
    parser.add_argument("--presses", type=int, default=200, help="of `large` and `browser`")
    options = parser.parse_args()
    print(hardware(options), flush=True)
    results = [BENCHMARKS[name](options) for name in (BENCHMARKS if options.which == "all" else [options.which])]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
