"""The figures of labelling, kept up to date beside the requests."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import sqlalchemy as sa

from trueup.artifacts.reports import RewardCard
from trueup.errors import RunError
from trueup.runs import read_report
from ui.figures.figures import figures
from ui.figures.log import CHUNK, Log, known_answers, newest_event
from ui.figures.schema import Figures
from ui.figures.view import utc
from ui.figures.worth import worth
from ui.labels.tables import Database, slot

FIRST = 5_000
"""Events that the first figures of a long log are of: whoever asks first sees them at once, then more and more."""
PATIENCE_S = 0.5
"""How long a page waits for figures with the newest events. If the last ones took more than half of it, it does not
wait, and shows those of a moment ago."""
FRESH_S = 5.0
"""Without new events only the pace changes, and figures are good for so long."""


class Live:
    """The figures of a store that goes on growing. Safe to ask from many threads; they share one reading.

    Reading and computing are done by one thread at a time beside the requests, so that with a million events nobody
    waits for the last hundred: `as_of` says up to which event the figures are, and what the newest one is.
    """

    def __init__(
        self,
        store: Database,
        run_dir: Path | None = None,
        names: Callable[[], Mapping[str, str]] = dict,
        clock: Callable[[], float] = time.time,
    ):
        """
        run_dir  the run, whose reward model is spoken of once there is one
        names    pseudonym to name, for admins; by default there are pseudonyms only
        """
        self.store, self.run_dir, self.names, self.clock = store, run_dir, names, clock
        self._log = Log()
        self._made: Figures | None = None
        self._made_at = 0.0
        self._took_s = 0.0
        self._lock = threading.Lock()
        self._work: threading.Thread | None = None
        self._some = threading.Event()
        self._failure: Exception | None = None

    def figures(self, wait: bool = False) -> Figures:
        """Figures as of now, or as of a moment ago.

        wait  for all events that there are, however long it takes
        """
        newest = newest_event(self.store)
        patience = PATIENCE_S if self._took_s < PATIENCE_S / 2 else 0
        deadline = time.monotonic() + (math.inf if wait else patience)
        while not self._is_fresh(newest):
            work, left = self._start(), deadline - time.monotonic()
            if left <= 0:
                break
            work.join(None if wait else left)
            self._raise_failure()
        self._some.wait()
        self._raise_failure()
        assert self._made is not None
        return self._made | {"as_of": self._made["as_of"] | {"newest": max(newest, self._made["as_of"]["event"])}}

    def _is_fresh(self, newest: int) -> bool:
        made = self._made
        return made is not None and made["as_of"]["event"] >= newest and self.clock() - self._made_at < FRESH_S

    def _start(self) -> threading.Thread:
        with self._lock:
            if self._work is None or not self._work.is_alive():
                self._work = threading.Thread(target=self._refresh, name="statistics", daemon=True)
                self._work.start()
            return self._work

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _refresh(self) -> None:
        """Read to the newest event; a long reading shows how far it is about every second."""
        try:
            newest, shown = newest_event(self.store), time.monotonic() - 1
            more = True
            while more:
                limit = CHUNK if self._log.size else FIRST
                with self.store.read() as db:
                    more = self._log.read(db, newest, limit) == limit and self._log.last < newest
                if not more or time.monotonic() - shown > 1:
                    now = self.clock()
                    started = time.monotonic()
                    # Of a long log the first figures come without coefficients, whose libraries may have to be loaded.
                    hurry = more and self._made is None
                    self._made, self._made_at = self._compute(int(now * 1000), coefficients=not hurry), now
                    shown = time.monotonic()
                    self._took_s = shown - started
                    self._some.set()
        except Exception as error:  # raised where the figures are asked for
            self._failure = error
            self._some.set()

    def _compute(self, now_ms: int, coefficients: bool) -> Figures:
        with self.store.read() as db:
            known = known_answers(db, self._log)
            slots = {
                state: n for state, n in db.execute(sa.select(slot.c.state, sa.func.count()).group_by(slot.c.state))
            }
        found = figures(self._log, known, now_ms, slots, coefficients)
        found["worth"] = worth(found, reward_card(self.run_dir))
        names = self.names()
        found["annotators"] = [{**one, "name": names.get(one["annotator"])} for one in found["annotators"]]
        found["as_of"] = {"event": self._log.last, "events": self._log.size, "now_utc": utc(now_ms)}
        return found


def reward_card(run_dir: Path | None) -> RewardCard | None:
    """The reward model's report card. One that cannot be read counts as none: the figures of labelling stand without
    it, and the run's own page names what is wrong."""
    try:
        return read_report(run_dir, "reward", RewardCard) if run_dir else None
    except RunError:
        return None
