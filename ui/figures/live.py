"""The figures of labelling, updated in the background."""

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
"""Events in the first figures of a long log, which are shown at once; later figures include more and more."""
PATIENCE_S = 0.5
"""How long a page waits for figures with the newest events. If the last ones took more than half of it, it does not
wait, and shows the last figures."""
FRESH_S = 5.0
"""How long figures stay valid without new events: only the pace changes."""


class Live:
    """The figures of a growing store. It is safe to use from many threads; they share one reading.

    One thread at a time reads and computes in the background, so that with a million events nobody waits for the last
    hundred. `as_of` has the last event in the figures and the newest event.
    """

    def __init__(
        self,
        store: Database,
        run_dir: Path | None = None,
        names: Callable[[], Mapping[str, str]] = dict,
        clock: Callable[[], float] = time.time,
    ):
        """
        run_dir  the run, for the figures of its reward model, once there is one
        names    pseudonym to name, for admins; by default figures have pseudonyms only
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

        wait  for figures with all events, however long it takes
        """
        newest = newest_event(self.store)
        patience = PATIENCE_S if self._took_s < PATIENCE_S / 2 else 0
        deadline = time.monotonic() + (math.inf if wait else patience)
        while not self._is_fresh(newest):
            work, remaining_s = self._start(), deadline - time.monotonic()
            if remaining_s <= 0:
                break
            work.join(None if wait else remaining_s)
            self._raise_failure()
        self._some.wait()
        self._raise_failure()
        assert self._made is not None
        return self._made | {"as_of": self._made["as_of"] | {"newest": max(newest, self._made["as_of"]["event"])}}

    def _is_fresh(self, newest: int) -> bool:
        latest = self._made
        return latest is not None and latest["as_of"]["event"] >= newest and self.clock() - self._made_at < FRESH_S

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
        """Read to the newest event. A long reading publishes figures about every second."""
        try:
            newest, shown_at = newest_event(self.store), time.monotonic() - 1
            more = True
            while more:
                limit = CHUNK if self._log.size else FIRST
                with self.store.read() as db:
                    more = self._log.read(db, newest, limit) == limit and self._log.last < newest
                if not more or time.monotonic() - shown_at > 1:
                    now = self.clock()
                    started = time.monotonic()
                    # The first figures of a long log have no coefficients, whose libraries may have to be loaded.
                    hurry = more and self._made is None
                    self._made, self._made_at = self._compute(int(now * 1000), coefficients=not hurry), now
                    shown_at = time.monotonic()
                    self._took_s = shown_at - started
                    self._some.set()
        except Exception as error:  # raised in the thread that wants the figures
            self._failure = error
            self._some.set()

    def _compute(self, now_ms: int, coefficients: bool) -> Figures:
        with self.store.read() as db:
            gold_answers = known_answers(db, self._log)
            slots = {
                state: n for state, n in db.execute(sa.select(slot.c.state, sa.func.count()).group_by(slot.c.state))
            }
        result = figures(self._log, gold_answers, now_ms, slots, coefficients)
        result["worth"] = worth(result, reward_card(self.run_dir))
        names = self.names()
        result["annotators"] = [{**one, "name": names.get(one["annotator"])} for one in result["annotators"]]
        result["as_of"] = {"event": self._log.last, "events": self._log.size, "now_utc": utc(now_ms)}
        return result


def reward_card(run_dir: Path | None) -> RewardCard | None:
    """The reward model's report card. One that cannot be read counts as none: the figures of labelling do not need it,
    and the run's own page names the problem."""
    try:
        return read_report(run_dir, "reward", RewardCard) if run_dir else None
    except RunError:
        return None
