"""The process of the policies: the web process imports no torch, and a slow model delays no label.

It does one job at a time; others wait in a bounded queue and learn their position. A job's events stay here, numbered,
so that a page that lost its connection, or was loaded again, continues where it was. The process starts with the first
job. If it ends, its current job reports that, and the next one starts it again.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
import time
import traceback
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, TypeAdapter

from trueup.console import exit_with_parent
from trueup.data.records import Candidate, Message
from trueup.errors import TrueupError
from trueup.models.policies import REFERENCE, versions

WAITING = 8
"""Most jobs that may wait."""
KEPT = 32
"""Most jobs whose events stay in memory; the oldest are dropped first."""

# ---- What a job is, and what it says ----------------------------------------------------------------------------


class Work(BaseModel):
    """A prompt, the policies that answer it, and the decoding."""

    prompt: list[Message]
    policies: list[str]
    temperature: float
    top_k: int
    top_p: float
    seed: int
    max_new_tokens: int
    max_thinking_tokens: int = 0


class Accepted(BaseModel):
    type: Literal["accepted"] = "accepted"
    work: Work


class Queued(BaseModel):
    type: Literal["queued"] = "queued"
    ahead: int
    """Jobs before this one, the running one among them."""


class Loading(BaseModel):
    type: Literal["loading"] = "loading"
    what: str


class Stepped(BaseModel):
    """One more token of each policy that has not ended."""

    type: Literal["step"] = "step"
    texts: dict[str, str]
    """The text that each policy's token adds to its answer: whole characters only, so it may be empty."""
    seconds: float
    """Seconds since the start of reading the prompt."""


class Answered(BaseModel):
    """A complete answer."""

    type: Literal["answer"] = "answer"
    policy: str
    ended: Literal["eos", "limit", "stopped"]
    tokens: int
    reasoning_tokens: int = 0
    """How many of them are the reasoning before it."""
    seconds: float


class Scored(BaseModel):
    type: Literal["score"] = "score"
    policy: str
    score: float
    """The score of the run's reward model; only comparable between answers to one prompt."""


class Piece(BaseModel):
    """A token, or several that make up a character."""

    text: str
    nats: float
    """log pi(token) - log pi_ref(token); the sum over the tokens of the piece."""
    tokens: int
    end: bool = False
    """The end of the turn, which has no text."""


class Ratios(BaseModel):
    """The log-ratios of a policy to the reference, along its own answer."""

    type: Literal["ratios"] = "ratios"
    policy: str
    reference: str
    pieces: list[Piece]
    sum: float
    """log pi(answer) - log pi_ref(answer), in nats, at temperature 1."""


class Done(BaseModel):
    type: Literal["done"] = "done"


class Stopped(BaseModel):
    type: Literal["stopped"] = "stopped"


class Failed(BaseModel):
    type: Literal["failed"] = "failed"
    message: str


LAST = (Done, Stopped, Failed)
Event = Annotated[
    Accepted | Queued | Loading | Stepped | Answered | Scored | Ratios | Done | Stopped | Failed,
    Field(discriminator="type"),
]
_event: TypeAdapter[Event] = TypeAdapter(Event)


class Full(TrueupError):
    """Too many jobs wait."""


class Job:
    """A piece of work and all of its events, for listeners on any thread."""

    def __init__(self, work: Work):
        self.id = uuid.uuid4().hex
        self.work = work
        self.events: list[Event] = []
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()
        self.add(Accepted(work=work))

    @property
    def ended(self) -> bool:
        return isinstance(self.events[-1], LAST)

    def add(self, event: Event) -> None:
        """Add an event; none can follow the last one."""
        with self._lock:
            if self.events and self.ended:
                return
            self.events.append(event)
            for loop, woken in self._listeners:
                try:
                    loop.call_soon_threadsafe(woken.set)
                except RuntimeError:  # that server has stopped
                    continue

    async def follow(self, after: int, idle_s: float) -> AsyncIterator[list[tuple[int, Event]]]:
        """Numbered events after number `after`, as they come, with an empty list after `idle_s` seconds without any."""
        listener = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._listeners.add(listener)
        try:
            while True:
                listener[1].clear()
                with self._lock:
                    news = list(enumerate(self.events[after:], start=after + 1))
                    over = self.ended
                after += len(news)
                if news:
                    yield news
                if over:
                    return
                try:
                    await asyncio.wait_for(listener[1].wait(), idle_s)
                except TimeoutError:
                    yield []
        finally:
            with self._lock:
                self._listeners.discard(listener)


# ---- In the web process -----------------------------------------------------------------------------------------


class Worker:
    """The queue, and the process behind it."""

    def __init__(self, run_dir: Path, trust: bool = False):
        """trust: see `trueup.models.policies.model_config`"""
        self.run_dir, self.trust = run_dir, trust
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        spawn = multiprocessing.get_context("spawn")  # never a copy of a process with a database and many threads
        self._spawn, self._stop = spawn, spawn.Event()
        self._process: Any = None
        self._pipe: Connection | None = None
        self._loaded: tuple[str, ...] = ()

    def submit(self, work: Work) -> Job:
        """Queue a piece of work; Full if too many wait."""
        with self._changed:
            if len(self._waiting) >= WAITING:
                raise Full(f"{len(self._waiting)} requests wait already: try again later")
            job = Job(work)
            self._jobs[job.id] = job
            for old in [one for one in self._jobs.values() if one.ended][: max(0, len(self._jobs) - KEPT)]:
                del self._jobs[old.id]
            self._waiting.append(job)
            self._tell_positions()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="open-mode", daemon=True)
                self._thread.start()
            self._changed.notify()
        return job

    def job(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def stop(self, job: Job) -> None:
        """Stop a job between two tokens, or take it out of the queue."""
        with self._changed:
            if job is self._running:
                self._stop.set()
            elif job in self._waiting:
                self._waiting.remove(job)
                job.add(Stopped())
                self._tell_positions()

    def close(self) -> None:
        """End the process and its current job."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._end_process()
        for job in list(self._jobs.values()):
            job.add(Failed(message="the server has stopped"))

    @property
    def pid(self) -> int | None:
        """The id of the model's process, if it runs."""
        return self._process.pid if self._process is not None else None

    def _tell_positions(self) -> None:
        for ahead, job in enumerate(self._waiting, start=0 if self._running is None else 1):
            if job.events[-1] != (queued := Queued(ahead=ahead)):
                job.add(queued)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._running = job = self._waiting.popleft()
                self._stop.clear()
                self._tell_positions()
            try:
                self._do(job)
            except (EOFError, OSError):
                job.add(Failed(message=self._obituary()))
            except TrueupError as error:
                job.add(Failed(message=str(error)))
            except Exception as error:  # a bug; the queue goes on
                traceback.print_exc()
                job.add(Failed(message=f"{type(error).__name__}: {error}"))
            with self._changed:
                self._running = None
                self._tell_positions()

    def _do(self, job: Job) -> None:
        if self._loaded != (loaded := versions(self.run_dir)):
            self._end_process()  # a stage was run again, so the weights in memory are old
        if self._process is None or not self._process.is_alive():
            job.add(Loading(what="the model process"))
            self._start_process()
            self._loaded = loaded
        assert self._pipe is not None
        self._pipe.send_bytes(job.work.model_dump_json().encode())
        while not job.ended:
            job.add(_event.validate_json(self._pipe.recv_bytes()))

    def _start_process(self) -> None:
        self._pipe, theirs = self._spawn.Pipe()
        arguments = (self.run_dir, self.trust, theirs, self._stop)
        self._process = self._spawn.Process(target=_main, args=arguments, name="trueup-open", daemon=True)
        self._process.start()
        theirs.close()  # so that its end is the end of the pipe

    def _end_process(self) -> None:
        if self._process is not None and self._process.is_alive():
            self._process.terminate()
            self._process.join(5)
        self._process = None

    def _obituary(self) -> str:
        """The reason why the process ended."""
        if self._closed or self._process is None:
            return "the server has stopped"
        self._process.join(10)
        code = self._process.exitcode
        self._process = None
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        hint = "; most likely memory ran out" if code == -signal.SIGKILL else "; the server's output says why"
        return f"the model process {how}{hint}. The next request starts it again."


# ---- In the model's process -------------------------------------------------------------------------------------


def _main(run_dir: Path, trust: bool, pipe: Connection, stop: Any) -> None:
    exit_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then ends this process
    os.nice(5)  # pages before tokens

    def say(event: BaseModel) -> None:
        pipe.send_bytes(event.model_dump_json().encode())

    engine: Any = None
    while True:
        try:
            work = Work.model_validate_json(pipe.recv_bytes())
        except EOFError:
            return
        try:
            if engine is None:
                import torch  # which this process alone needs

                from trueup.models.lockstep import Engine

                torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))  # a core stays with the pages
                engine = Engine(run_dir, lambda what: say(Loading(what=what)), trust)
            for event in answer(engine, work, stop):
                say(event)
        except ModuleNotFoundError as error:
            say(Failed(message=f"{error}: the policies need what `pip install 'trueup[train]'` installs"))
        except TrueupError as error:
            say(Failed(message=str(error)))
        except Exception as error:  # a bug, or memory that ran out, so the loaded models may be broken
            traceback.print_exc()
            engine = None
            say(Failed(message=f"{type(error).__name__}: {error} (the server's output says where)"))


def answer(engine: Any, work: Work, stop: Any) -> Iterator[Event]:
    """All events of a piece of work: its answers token by token, then their scores, then their log-ratios to the
    reference."""
    from trueup.models.sampling import Decoding

    decoding = Decoding(
        work.max_new_tokens, work.temperature, work.top_k, work.top_p, work.seed, work.max_thinking_tokens
    )
    ids: dict[str, list[int]] = {name: [] for name in work.policies}
    texts: dict[str, list[str]] = {name: [] for name in work.policies}
    open_ones = dict.fromkeys(work.policies)
    whole: dict[str, Candidate] = {}
    started, seconds = time.perf_counter(), 0.0
    for step in engine.stream(work.policies, work.prompt, decoding):
        seconds = round(time.perf_counter() - started, 3)
        for name, token in step.tokens.items():
            ids[name].append(token.id)
            texts[name].append(token.text)
        yield Stepped(texts={name: token.text for name, token in step.tokens.items()}, seconds=seconds)
        for name, ended in step.ended.items():
            del open_ones[name]
            whole[name] = ended
            how: Literal["eos", "limit"] = "eos" if ended.finished else "limit"
            count = ended.reasoning_tokens
            yield Answered(policy=name, ended=how, tokens=len(ids[name]), reasoning_tokens=count, seconds=seconds)
        if stop.is_set():
            break
    for name in open_ones:
        yield Answered(policy=name, ended="stopped", tokens=len(ids[name]), seconds=seconds)
    scored = [name for name in work.policies if name in whole]
    scores = engine.scores(work.prompt, [whole[name] for name in scored]) if scored else None
    for name, score in zip(scored, scores or [], strict=False):
        if score is not None:
            yield Scored(policy=name, score=score)
    for name in work.policies:
        if name == REFERENCE or not ids[name]:
            continue
        nats = engine.log_ratios(work.prompt, ids[name], name).tolist()
        parts = pieces(texts[name], nats, name in whole and whole[name].finished)
        yield Ratios(policy=name, reference=REFERENCE, pieces=parts, sum=sum(nats))
    yield Stopped() if open_ones else Done()


def pieces(texts: Sequence[str], nats: Sequence[float], finished: bool) -> list[Piece]:
    """The tokens of an answer as pieces of text: tokens with only a part of a character join the last of it.

    finished  the last token is the end of the turn
    """
    result: list[Piece] = []
    total, waiting = 0.0, 0
    for i, (text, value) in enumerate(zip(texts, nats, strict=True)):
        end = finished and i + 1 == len(texts)
        total, waiting = total + value, waiting + 1
        if text or end or i + 1 == len(texts):
            result.append(Piece(text=text, nats=total, tokens=waiting, end=end))
            total, waiting = 0.0, 0
    return result
