"""What labels have to come through, in numbers: docs/security.md states them.

    python benchmarks/storms.py restarts   PostgreSQL crashes, and is restarted, while people label
    python benchmarks/storms.py clocks     the server's clock jumps between a year back and 15 days ahead
    python benchmarks/storms.py disks      the disk of the label store fills up, and is cleared again (mounts one: root)
    python benchmarks/storms.py replays    two servers on one store; every press comes several times, in any order
    python benchmarks/storms.py imports    an import is killed while people label, and begun again, until it is through
    python benchmarks/storms.py all        all of them, in this order

`restarts` starts a PostgreSQL of its own, `replays` and `imports` take one by `--database`; the others are SQLite. The
servers are `trueup label` in processes of their own. Each storm counts the same: what was confirmed and is not in the
store as it was said (lost), what is in the store twice or was said by nobody (doubled), and pairs with more labels that
count than were asked for (over-collected). Exit code 1 if one of them is not 0. What kills servers, and lets people
race, is in benchmarks/labelling.py.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "tests" / "lib"))

import httpx
import postgresql
import sqlalchemy as sa

import chaos
import labelling
from ui.labels.config import LabelConfig
from ui.labels.exchange import SOURCE
from ui.labels.store import Store, superseded
from ui.labels.tables import event, slot
from ui.people.accounts import COOKIE, People

PASSWORD = "four words are enough"
DAY_S = 86_400

# ---- Who labels through it ---------------------------------------------------------------------------------------


class Labeller(threading.Thread):
    """One annotator's browser: it signs in when it has to, and sends a press under the same id until it is confirmed.

    replays  at most so many further copies of each press, in any order among the others
    """

    def __init__(self, name: str, pseudonym: str, addresses: Sequence[str], seed: str, replays: int = 0):
        super().__init__(daemon=True)
        self.account, self.pseudonym, self.addresses, self.replays = name, pseudonym, addresses, replays
        self.rng, self.cookie, self.over = random.Random(seed), "", threading.Event()
        self.acknowledged: list[chaos.Said] = []
        self.in_flight: list[chaos.Said] = []
        self.told: Counter[str] = Counter()
        """Answers other than a confirmation, by status; `none`: the server was not there."""
        self.problems: list[str] = []

    def run(self) -> None:
        try:
            with ExitStack() as opened:
                self._clients = [
                    opened.enter_context(httpx.Client(base_url=address, timeout=30)) for address in self.addresses
                ]
                while not self.over.is_set():
                    work = self._asked("GET", "/api/v1/tasks")
                    self._press(work["tasks"] if work else [])
        except Exception as error:
            self.problems.append(f"{self.account}: {error!r}")

    def _press(self, tasks: list[dict[str, Any]]) -> None:
        """An answer to each of the tasks, in any order."""
        presses = []
        for task in tasks:
            choice, name = self.rng.choice(chaos.CHOICES), str(uuid.UUID(int=self.rng.getrandbits(128)))
            body = {"client_uuid": name, "token": task["token"], "choice": choice, "device": "key"}
            copies = 1 + self.rng.randint(0, self.replays)
            presses += [(body, (name, self.pseudonym, "label", chaos.said_of(choice, task)))] * copies
        self.rng.shuffle(presses)
        told: dict[str, chaos.Said] = {}
        self.in_flight = [said for _, said in presses]
        for body, (name, who, _, text) in presses:
            if (answer := self._asked("POST", "/api/v1/labels", body)) is None:
                continue
            label = answer["label"]
            said = (name, who, label["kind"], text)
            if (label["client_uuid"], label["choice"]) != (name, body["choice"]) or told.setdefault(name, said) != said:
                self.problems.append(f"{self.account}: sent {body}, was told {label}, and before {told.get(name)}")
        self.acknowledged += told.values()
        self.in_flight = [said for _, said in presses if said[0] not in told]
        time.sleep(0.02)

    def _asked(self, method: str, path: str, body: Any = None) -> Any:
        """The answer, however often it has to be asked for. None: the task is stale, or the storm is over."""
        while not self.over.is_set():
            try:
                client = self.rng.choice(self._clients)
                response = client.request(method, path, json=body, headers={"Cookie": f"{COOKIE}={self.cookie}"})
                if response.status_code == 200:
                    return response.json()
                self.told[str(response.status_code)] += 1
                if response.status_code == 409:
                    return None
                if response.status_code == 401:
                    answer = client.post("/login", data={"name": self.account, "password": PASSWORD})
                    self.cookie = answer.cookies.get(COOKIE) or ""
                    response = answer
                if response.status_code not in (303, 401, 429, 503):
                    where = f"{self.account}: {response.request.method} {response.request.url.path}"
                    self.problems.append(f"{where}: {response.status_code} {response.text}")
            except httpx.TransportError:
                self.told["none"] += 1
            time.sleep(0.1)
        return None


@dataclass
class Weathered:
    """What a storm left."""

    acknowledged: int = 0
    told: Counter[str] = field(default_factory=Counter)
    lost: Counter[chaos.Said] = field(default_factory=Counter)
    doubled: Counter[chaos.Said] = field(default_factory=Counter)
    over_collected: int = 0
    problems: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        return not (self.lost or self.doubled or self.over_collected or self.problems)


@contextmanager
def labelling_on(config: LabelConfig, addresses: Sequence[str], annotators: int, replays: int = 0) -> Iterator[Any]:
    """So many annotators label; yields how many presses are confirmed by now, and what the storm left."""
    store = Store(config.store_url)
    people = People(store)
    names = [f"Annotator {number}" for number in range(annotators)]
    known = [people.add(name, "annotator", PASSWORD) for name in names]
    store.close()
    running = [Labeller(who.name, who.pseudonym, addresses, f"{who.name}", replays) for who in known]
    left = Weathered()
    for one in running:
        one.start()
    try:
        yield lambda: sum(len(one.acknowledged) for one in running), left
    finally:
        for one in running:
            one.over.set()
        for one in running:
            one.join(60)
    found = chaos.stored(config.store_url)
    acknowledged = Counter(said for one in running for said in one.acknowledged)
    in_flight = Counter({said for one in running for said in one.in_flight})
    in_flight += Counter({(name, who, "late", text): 1 for name, who, _, text in in_flight})
    left.acknowledged = acknowledged.total()
    left.told = sum((one.told for one in running), Counter())
    left.lost, left.doubled = acknowledged - found, found - acknowledged - in_flight
    left.over_collected = over_collected(config.store_url)
    left.problems += chaos.inconsistencies(config.store_url) + [text for one in running for text in one.problems]


def over_collected(url: str | sa.URL) -> int:
    """Pairs with more labels of people that count than are wanted of them."""
    counted = sa.and_(event.c.source == "human", event.c.purpose == "work", event.c.kind == "label", ~superseded())
    store = Store(url)
    with store.read() as db:
        labels = Counter(db.scalars(sa.select(event.c.item_id).where(counted)))
        wanted = Counter(db.scalars(sa.select(slot.c.item_id)))
    store.close()
    return len(labels - wanted)


def until(moved: Callable[[], bool], what: str, within_s: float = 60) -> None:
    deadline = time.monotonic() + within_s
    while not moved():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{what}: not within {within_s:g} s")
        time.sleep(0.02)


def until_more(pressed: Callable[[], int], presses: int, what: str) -> None:
    """Wait until so many more presses are confirmed."""
    before = pressed()
    until(lambda: pressed() >= before + presses, what)


# ---- PostgreSQL crashes and restarts -----------------------------------------------------------------------------


def restarts(rounds: int, annotators: int = 8) -> Weathered:
    """PostgreSQL is ended by turns: at once, as in a power cut, and as an administrator does it."""
    if (programs := postgresql.programs()) is None:
        raise SystemExit("no PostgreSQL found: apt-get install postgresql")
    with tempfile.TemporaryDirectory(prefix="trueup-storm-") as folder:
        data = Path(folder, "postgresql")
        data.mkdir()
        database = postgresql.Server(programs, data)
        try:
            url = f"{database.url}/postgres"
            config = chaos.campaign(Path(folder), 100 * rounds + 100, store=url, labels_per_pair=3)
            with chaos.serving(config) as address, labelling_on(config, [address], annotators) as (pressed, left):
                for number in range(rounds):
                    until_more(pressed, 2 * annotators, f"labels, round {number}")
                    database.crash() if number % 2 else database.stop()
                    database.start()
                until_more(pressed, annotators + 1, "labels after the last restart")
            return left
        finally:
            database.crash()


# ---- Clocks ------------------------------------------------------------------------------------------------------

CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static volatile long *ahead;
__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("CLOCK_AHEAD"), O_RDONLY);
    if (file >= 0) ahead = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, file, 0);
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME && ahead && ahead != MAP_FAILED) now->tv_sec += *ahead;
    return failed;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec precise;
    if (clock_gettime(CLOCK_REALTIME, &precise)) return -1;
    now->tv_sec = precise.tv_sec; now->tv_usec = precise.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *to) {
    struct timespec precise;
    clock_gettime(CLOCK_REALTIME, &precise);
    if (to) *to = precise.tv_sec;
    return precise.tv_sec;
}
"""
"""A library between a process and its C library: the wall clock is ahead by the seconds that a file holds."""
JUMPS = tuple(DAY_S * days for days in (0, -365, 15, -1, 1, -365, 0.02, -0.02, 15, 0))


def clocks(jumps: Sequence[float] = JUMPS, annotators: int = 8) -> Weathered:
    """The clock of the server, and nobody else's, jumps while people label; sessions and leases end, or do not."""
    with tempfile.TemporaryDirectory(prefix="trueup-storm-") as name:
        folder = Path(name)
        (folder / "clock.c").write_text(CLOCK, encoding="utf-8")
        library, ahead = folder / "clock.so", folder / "ahead"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library, folder / "clock.c", "-ldl"], check=True)
        ahead.write_bytes(bytes(8))
        config = chaos.campaign(folder, 100 * len(jumps), labels_per_pair=3, lease_minutes=1)
        moved = {"LD_PRELOAD": str(library), "CLOCK_AHEAD": str(ahead)}
        with (
            labelling.trueup_label(config, moved) as server,
            labelling_on(config, [server.address], annotators) as (pressed, left),
        ):
            for jump in jumps:
                with ahead.open("r+b") as file:
                    file.write(int(jump).to_bytes(8, sys.byteorder, signed=True))
                until_more(pressed, 3 * annotators, f"labels at {jump / DAY_S:+g} days")
        days = {round((when - time.time()) / DAY_S) for when in _moments(config)}
        left.problems += [
            f"no label is from {jump / DAY_S:+g} days" for jump in jumps if round(jump / DAY_S) not in days
        ]
        return left


def _moments(config: LabelConfig) -> list[float]:
    from datetime import datetime

    store = Store(config.store_url)
    with store.read() as db:
        found = [datetime.fromisoformat(utc).timestamp() for utc in db.scalars(sa.select(event.c.created_utc))]
    store.close()
    return found


# ---- Disks -------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(megabytes: float) -> Iterator[Path]:
    """A folder with so much room, and no more."""
    with tempfile.TemporaryDirectory(prefix="trueup-disk-") as folder:
        made = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k,mode=755", "trueup", folder]
        subprocess.run(made, check=True)
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the room that is left."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return ballast


def disks(rounds: int, annotators: int = 8) -> Weathered:
    """The disk of the store fills up; presses are told so; somebody clears it, and they go on."""
    with small_disk(64) as disk, tempfile.TemporaryDirectory(prefix="trueup-storm-") as folder:
        store = f"sqlite:///{disk}/labels.sqlite"
        config = chaos.campaign(Path(folder), 100 * rounds + 100, store=store, labels_per_pair=3)
        with chaos.serving(config) as address, labelling_on(config, [address], annotators) as (pressed, left):
            for number in range(rounds):
                until_more(pressed, 2 * annotators, f"labels, round {number}")
                ballast = fill(disk)
                _until_still(pressed)
                ballast.unlink()
            until_more(pressed, annotators, "labels after there was room")
        return left


def _until_still(pressed: Callable[[], int]) -> None:
    """Wait until nothing has been confirmed for a second: what the log had room for is used up."""
    before, since = pressed(), time.monotonic()
    while time.monotonic() - since < 1:
        time.sleep(0.05)
        if pressed() != before:
            before, since = pressed(), time.monotonic()


# ---- Replays -----------------------------------------------------------------------------------------------------


def replays(url: str, presses: int, annotators: int = 8) -> Weathered:
    """Two servers; each press comes one to five times, to either of them, shuffled among the others."""
    with tempfile.TemporaryDirectory(prefix="trueup-storm-") as folder, ExitStack() as running:
        config = chaos.campaign(Path(folder), presses, store=url, labels_per_pair=3)
        addresses = [running.enter_context(chaos.serving(config)) for _ in range(2)]
        with labelling_on(config, addresses, annotators, replays=4) as (pressed, left):
            until(lambda: pressed() >= presses, "presses", within_s=600)
        return left


# ---- Imports -----------------------------------------------------------------------------------------------------


def imports(url: str, rows: int, kills: int, annotators: int = 4) -> tuple[Weathered, int]:
    """`trueup labels import` is ended by SIGKILL at random moments; the last time it may come through.

    Returns what was left of the labels of people, and how many times it was killed while it wrote.
    """
    draw, midway = random.Random(0), 0
    with tempfile.TemporaryDirectory(prefix="trueup-storm-") as folder:
        config = chaos.campaign(Path(folder), 200 * kills + 200, store=url, labels_per_pair=3)
        file = Path(folder, "preferences.jsonl")
        labelling.write_preferences(file, rows)
        with (
            labelling.trueup_label(config) as server,
            labelling_on(config, [server.address], annotators) as (_, left),
        ):
            command = [sys.executable, "-c", labelling.TRUEUP, "labels", "import"]
            command += [str(Path(folder, "campaign.yaml")), str(file)]
            for kill in range(kills):
                before = imported(url)
                # By how far the import has come: how soon it would be through differs from machine to machine.
                most = max(before + 1, rows * (kill + 1) // (kills + 1))
                wanted = draw.randint(before + 1, most)
                running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
                until(partial(_has_come, running, url, wanted), "rows of the import")
                time.sleep(draw.uniform(0, 0.3))  # within a transaction too, and not only after one
                running.send_signal(signal.SIGKILL)
                running.wait()
                midway += before < imported(url) < rows
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            again = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            if f" 0 labels imported; {rows} were in the store already" not in again:
                left.problems.append(again)
        if (found := imported(url)) != rows:
            left.problems.append(f"{found} labels of {rows} rows")
        return left, midway


def _has_come(importing: subprocess.Popen[bytes], url: str, rows: int) -> bool:
    """Whether so many rows are in the store, or no more will come."""
    return imported(url) >= rows or importing.poll() is not None


def imported(url: str) -> int:
    store = Store(url)
    with store.read() as db:
        found = db.scalar(sa.select(sa.func.count()).where(event.c.source == SOURCE)) or 0
    store.close()
    return found


# ---- Command -----------------------------------------------------------------------------------------------------


def report(what: str, left: Weathered) -> bool:
    print(f"{what}: {left.acknowledged:,} labels confirmed; other answers meanwhile {dict(left.told)}")
    print(f"  lost {left.lost.total()}, doubled {left.doubled.total()}, over-collected {left.over_collected}")
    for problem in left.problems[:10]:
        print(f"  {problem[:300]}")
    return labelling.verdict("0 lost, 0 doubled, 0 over-collected, store sound", left.is_sound)


def run(which: str, options: argparse.Namespace) -> bool:
    rounds = options.rounds
    if which == "restarts":
        return report(f"PostgreSQL crashed or was restarted {rounds} times among 8 writers", restarts(rounds))
    if which == "clocks":
        days = ", ".join(f"{jump / DAY_S:+g}" for jump in JUMPS)
        return report(f"the server's clock jumped to {days} days", clocks())
    if which == "disks":
        return report(f"the disk filled up {rounds} times among 8 writers", disks(rounds))
    with labelling.database(options) as url:
        if which == "replays":
            return report("two servers, each press 1 to 5 times in any order", replays(url, options.presses))
        left, midway = imports(url, options.rows, options.kills)
    what = f"an import of {options.rows:,} rows was killed {options.kills} times, {midway} of them midway"
    return report(f"{what}; every row is a label once; people meanwhile", left)


STORMS = ("restarts", "clocks", "disks", "replays", "imports")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=[*STORMS, "all"])
    parser.add_argument("--database", metavar="URL", help="a PostgreSQL server, of `replays` and `imports`")
    parser.add_argument("--rounds", type=int, default=20, help="of `restarts` and `disks`")
    parser.add_argument("--presses", type=int, default=2000, help="of `replays`")
    parser.add_argument("--rows", type=int, default=20_000, help="of `imports`")
    parser.add_argument("--kills", type=int, default=10, help="of `imports`")
    options = parser.parse_args()
    print(labelling.hardware(options), flush=True)
    return 0 if all([run(which, options) for which in (STORMS if options.which == "all" else [options.which])]) else 1


if __name__ == "__main__":
    sys.exit(main())
