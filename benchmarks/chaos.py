"""Labels under attack: servers that are killed while they write, and many who are after the same last slot.

tests/ui/labels/test_chaos.py runs this with few rounds, benchmarks/labelling.py with many. The database is SQLite or
PostgreSQL, by URL. Servers are processes of their own, with the whole web application; clients speak HTTP.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa

from sft.config import SampleConfig, SFTConfig
from trueup import runs
from trueup.config import SplitConfig
from trueup.data.records import Candidate, CandidateSet, Message, prompt_id, write_rows
from trueup.data.split import split_name
from trueup.models.config import ModelConfig
from ui.labels.config import LabelConfig
from ui.labels.items import Item, Text
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import account, event, item, now, slot, view
from ui.labels.tasks import Judgement, Settings
from ui.people.accounts import COOKIE, People

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["ui.app"])  # a server that is killed is back at once
CHOICES = ("a_much", "a", "tie", "b_slightly", "b")
WORDS = "bread keeps fresh when it is frozen in slices wrapped well and never left beside the warm oven all day".split()

# ---- A campaign, and who labels for it ---------------------------------------------------------------------------


def campaign(
    folder: Path, pairs: int, words: int = 12, text: Callable[[int], str] | None = None, **label: Any
) -> LabelConfig:
    """A run directory whose `sample` stage is finished: so many prompts with two answers of so many words.

    text  what the n-th prompt and its answers say instead
    """
    model, split, run_dir = ModelConfig(), SplitConfig(), folder / "run"
    prompts = folder / "prompts.jsonl"
    prompts.write_text('{"prompt": "one"}\n', encoding="utf-8")
    runs.begin(SFTConfig(model=model, split=split, data=[{"path": prompts}], run_dir=run_dir)).finish()
    sample = runs.begin(SampleConfig(model=model, split=split, prompts=prompts, run_dir=run_dir))
    write_rows(sample.dir / "candidates.jsonl", (_candidates(number, words, split, text) for number in range(pairs)))
    sample.finish()
    return LabelConfig(model=model, split=split, run_dir=run_dir, **label)


def _candidates(number: int, words: int, split: SplitConfig, text: Callable[[int], str] | None = None) -> CandidateSet:
    draw = random.Random(number)

    def said(count: int) -> str:
        return " ".join(draw.choices(WORDS, k=count)) if text is None else text(number)

    prompt = [Message(role="user", content=f"Question {number}: {said(words // 2)}?")]
    answers = [
        Candidate(text=f"**Answer {number}.{place}:** {said(words)}", token_ids=[place], finished=True)
        for place in range(2)
    ]
    return CandidateSet(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        category=None,
        split=split_name(prompt, split),
        candidates=answers,
        sampler={"policy_sha256": "p", "temperature": 0.8, "seed": 0},
    )


def let_in(url: str | sa.URL, number: int) -> dict[str, str]:
    """Accounts `ann-0`, `ann-1` and so on, without a password, that are signed in: {pseudonym: cookie}."""
    store = Store(url)
    names = [f"ann-{i}" for i in range(number)]
    common = {"role": "annotator", "password_hash": "", "active": True, "created_utc": now()}
    keys = ("name", "folded", "skeleton", "pseudonym")
    with store.write() as db:
        db.execute(account.insert(), [{key: name for key in keys} | common for name in names])
        ids = dict(db.execute(sa.select(account.c.pseudonym, account.c.account_id)).all())
    people = People(store)
    cookies = {name: people.open_session(ids[name]) for name in names}
    store.close()
    return cookies


def signed_in(address: str, cookie: str, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=address, headers={"Cookie": f"{COOKIE}={cookie}"}, **options)


Said = tuple[str, str, str, str | None]
"""client_uuid, annotator, kind, and the text that was preferred ("" for a tie, None for a skip or a flag)."""


def stored(url: str | sa.URL) -> Counter[Said]:
    """Every answer of people that the store holds, whether it was taken back or not."""
    query = (
        sa.select(event.c.client_uuid, event.c.annotator, event.c.kind, event.c.tiers, item.c.completions)
        .join(item, item.c.item_id == event.c.item_id)
        .where(event.c.source == "human", event.c.kind.in_(("label", "late", "skip", "flag")))
    )
    store = Store(url)
    try:
        with store.read() as db:
            return Counter(
                (row.client_uuid, row.annotator, row.kind, _preferred(row.tiers, row.completions))
                for row in db.execute(query)
            )
    finally:
        store.close()


def _preferred(tiers: list[list[int]] | None, completions: list[dict[str, Any]]) -> str | None:
    if tiers is None:
        return None
    return "" if len(tiers) == 1 else str(completions[tiers[0][0]]["text"])


def said_of(choice: str, task: dict[str, Any]) -> str | None:
    """The text that a choice prefers, from what the annotator was shown."""
    if choice in ("skip", "flag"):
        return None
    return "" if choice in ("tie", "both_bad") else str(task["answers"]["ab".index(choice[0])]["text"])


def inconsistencies(url: str | sa.URL) -> list[str]:
    """What must hold between slots, views and events, whatever happened; empty: all does."""
    store = Store(url)
    later = event.alias()
    counted = sa.select(event.c.item_id, event.c.annotator).where(
        event.c.source == "human",
        event.c.purpose == "work",
        event.c.kind == "label",
        ~sa.exists().where(later.c.supersedes == event.c.event_id),
    )
    with store.read() as db:
        labels = Counter(tuple(row) for row in db.execute(counted))
        done = Counter(
            tuple(row)
            for row in db.execute(sa.select(slot.c.item_id, slot.c.annotator).where(slot.c.state == "filled"))
        )
        leased = sa.select(slot.c.item_id, slot.c.annotator).where(slot.c.state == "leased")
        leases = Counter(tuple(row) for row in db.execute(leased))
        waiting = sa.select(view.c.item_id, view.c.annotator).where(view.c.closed.is_(False), view.c.purpose == "work")
        views = Counter(tuple(row) for row in db.execute(waiting))
    problems = []
    if labels != done:
        problems.append(f"labels that count and slots that are filled differ: {(labels - done) + (done - labels)}")
    if leases - views:
        problems.append(f"leased, and shown to nobody: {leases - views}")
    if store.is_sqlite:
        with closing(sqlite3.connect(str(store.url.database))) as db_file:
            if (found := db_file.execute("PRAGMA quick_check").fetchall()) != [("ok",)]:
                problems.append(f"quick_check: {found}")
    store.close()
    return problems


# ---- Servers -----------------------------------------------------------------------------------------------------


def _serve(config: LabelConfig, ready: Connection) -> None:
    from ui.app import label_app, listen
    from ui.people.connections import server

    bound = listen("127.0.0.1", 0)
    running = server(label_app(config))
    ready.send(f"http://127.0.0.1:{bound.getsockname()[1]}")
    running.run(sockets=[bound])


def start_server(config: LabelConfig) -> tuple[Any, str]:
    """The web application in a process of its own: the process, and its address."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_serve, args=(config, there), daemon=True)
    process.start()
    there.close()
    if not here.poll(120):
        process.kill()
        raise RuntimeError("the server did not start within 120 s")
    return process, str(here.recv())


@contextmanager
def serving(config: LabelConfig) -> Iterator[str]:
    """The address of a server that runs for so long."""
    process, address = start_server(config)
    try:
        yield address
    finally:
        process.kill()
        process.join()


# ---- kill -9 in the middle of concurrent writers -----------------------------------------------------------------


@dataclass
class Presser:
    """One annotator's browser: a press is kept until it is confirmed, and sent again under the same id."""

    name: str
    cookie: str
    rng: random.Random
    acknowledged: list[Said] = field(default_factory=list)
    in_flight: tuple[dict[str, Any], Said] | None = None
    resent: int = 0
    problem: str | None = None

    def run(self, address: str) -> None:
        """Label until the server is gone."""
        try:
            with signed_in(address, self.cookie, timeout=30) as client:
                if self.in_flight is not None:
                    self.resent += 1
                    self._send(client)
                while tasks := self._checked(client.get("/api/v1/tasks"))["tasks"]:
                    for task in tasks:
                        self._press(client, task)
                while client.get("/api/v1/tasks").is_success:  # nothing is left: the server has to die all the same
                    time.sleep(0.05)
        except httpx.TransportError:
            pass
        except Exception as error:
            self.problem = f"{self.name}: {error!r}"

    def _press(self, client: httpx.Client, task: dict[str, Any]) -> None:
        choice, name = self.rng.choice(CHOICES), str(uuid.UUID(int=self.rng.getrandbits(128)))
        body = {"client_uuid": name, "token": task["token"], "choice": choice, "device": "key"}
        self.in_flight = body, (name, self.name, "label", said_of(choice, task))
        self._send(client)

    def _send(self, client: httpx.Client) -> None:
        assert self.in_flight is not None
        body, said = self.in_flight
        answer = self._checked(client.post("/api/v1/labels", json=body))["label"]
        if (answer["client_uuid"], answer["choice"]) != (body["client_uuid"], body["choice"]):
            raise RuntimeError(f"sent {body}, and was told {answer}")
        self.acknowledged.append(said)
        self.in_flight = None

    def _checked(self, response: httpx.Response) -> Any:
        if response.status_code != 200:
            raise RuntimeError(f"{response.request.method} {response.request.url.path}: {response.status_code}")
        return response.json()


@dataclass(frozen=True)
class Kills:
    rounds: int
    acknowledged: int
    resent: int
    """Presses that were in flight when the server was killed, and were sent again."""
    unconfirmed: int
    """Presses without a confirmation whose labels were in the store nevertheless."""
    problems: list[str]


def kill_rounds(config: LabelConfig, rounds: int, annotators: int, seed: int = 0) -> Kills:
    """Kill a server with SIGKILL at a random moment while `annotators` label as fast as they can; start it again.

    After every kill: what was confirmed is in the store as it was said and once, and nothing else is in it but
    presses whose confirmation was lost; the file is sound, and slots, views and labels agree.
    """
    rng = random.Random(seed)
    process, address = start_server(config)  # the queue is filled by the first one
    process.kill()
    process.join()
    cookies = let_in(config.store_url, annotators)
    pressers = [Presser(name, cookie, random.Random(f"{seed} {name}")) for name, cookie in cookies.items()]
    unconfirmed, problems = 0, []
    for number in count(1):
        process, address = start_server(config)
        before = sum(len(one.acknowledged) for one in pressers)
        threads = [threading.Thread(target=one.run, args=(address,), daemon=True) for one in pressers]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 30  # the moment is random among the writes, not before the first of them
        while sum(len(one.acknowledged) for one in pressers) < before + annotators and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.4))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for thread in threads:
            thread.join(60)
        found = stored(config.store_url)
        acknowledged = Counter(said for one in pressers for said in one.acknowledged)
        in_flight = Counter(one.in_flight[1] for one in pressers if one.in_flight is not None)
        unconfirmed += (found - acknowledged).total()
        if lost := acknowledged - found:
            problems.append(f"round {number}: confirmed, and not in the store: {lost}")
        if added := found - acknowledged - in_flight:
            problems.append(f"round {number}: in the store, and said by nobody: {added}")
        problems += [f"round {number}: {problem}" for problem in inconsistencies(config.store_url)]
        problems += [f"round {number}: {one.problem}" for one in pressers if one.problem is not None]
        if number == rounds or problems:
            resent = sum(one.resent for one in pressers)
            return Kills(number, acknowledged.total(), resent, unconfirmed, problems)
    raise AssertionError("unreachable")


# ---- Races for the last slot -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Races:
    races: int
    contenders: int
    processes: int
    labels: int
    """Labels that count, over all pairs; one is wanted of each."""
    late: int
    """Kept and not counted: the others had all held the pair, their lease had run out, and they answered at once."""
    problems: list[str]


def races(url: str, number: int, processes: int, threads: int) -> Races:
    """Let everybody race for the one slot of a pair, `number` times; there is never a second label.

    Even races: nobody has the pair, and all ask for work at once. Odd races: everybody has it in front of them, with a
    lease that ran out, and all answer at once.
    """
    store = Store(url)
    contenders = processes * threads
    prompts = [[Message(role="user", content=f"race {i}")] for i in range(number)]
    ids = store.add_items(Item(prompt, [Text("first"), Text("second")], None, "train", {}) for prompt in prompts)
    gate = PROCESSES.Barrier(contenders + 1)
    answers = PROCESSES.Queue()
    running = [
        PROCESSES.Process(target=_contend, args=(url, number, threads, f"process-{i}", gate, answers), daemon=True)
        for i in range(processes)
    ]
    for process in running:
        process.start()
    try:
        for position, item_id in enumerate(ids):
            row = {"item_id": item_id, "slot_no": 0, "position": position, "selection": "random", "propensity": 1.0}
            with store.write() as db:
                db.execute(slot.insert().values(**row, state="open"))
            gate.wait(120)  # here everybody starts
            if position % 2:
                gate.wait(120)  # here everybody has it
            gate.wait(120)  # here everybody is done
        told = Counter[str]()
        for _ in range(processes):
            told += answers.get(timeout=120)
    finally:
        for process in running:
            process.join(30)
            process.kill()
    query = sa.select(event.c.item_id, event.c.kind)
    with store.read() as db:
        events = Counter((row.item_id, row.kind) for row in db.execute(query))
        done = Counter(db.scalars(sa.select(slot.c.item_id).where(slot.c.state == "filled")))
    store.close()
    problems = inconsistencies(url)
    for item_id in ids:
        if events[item_id, "label"] != 1 or done[item_id] != 1:
            problems.append(f"{item_id}: {events[item_id, 'label']} labels, {done[item_id]} slots filled, 1 wanted")
    kinds = Counter({kind: sum(n for (_, k), n in events.items() if k == kind) for kind in ("label", "late")})
    if told != kinds:
        problems.append(f"contenders were told {told}, and the store has {kinds}")
    return Races(number, contenders, processes, kinds["label"], kinds["late"], problems)


def _contend(url: str, number: int, threads: int, prefix: str, gate: Any, answers: Any) -> None:
    """A process of contenders; it tells how often they were told what."""
    store = Store(url)
    keeping, expiring = LabelService(store), LabelService(store, Settings(lease_s=-1.0))
    told: list[str] = []

    def contend(name: str) -> None:
        for position in range(number):
            gate.wait(120)
            if position % 2:
                while not (tasks := expiring.tasks(name)):
                    pass  # somebody else is just being given it
                gate.wait(120)
                served = expiring
            else:
                tasks, served = keeping.tasks(name), keeping
            for task in tasks:
                choice = CHOICES[position % len(CHOICES)]
                told.append(served.label(name, Judgement(f"{name}-{position}", task.token, choice)).label.kind)
            gate.wait(120)

    running = [threading.Thread(target=contend, args=(f"{prefix}-{i}",)) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    answers.put(Counter(told))
    store.close()
