"""Turns at writing: some writers at once on threads, some that wait, and the others must try again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from trueup.errors import TrueupError

T = TypeVar("T")


class Busy(TrueupError):
    """Nothing was written; the same request should be sent again in a moment."""


@dataclass
class Turns:
    """Threads for writing, so that a slow store delays no page and no reader.

    SQLite has one writer, and PostgreSQL's writers work side by side: a few threads keep either busy.
    """

    at_once: int = 8
    waiting: int = 100
    patience_s: float = 5.0
    _waiting: int = 0
    _limiters: RunVar[tuple[CapacityLimiter, CapacityLimiter]] = field(default_factory=lambda: RunVar("turns"))

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work on a thread. Busy, before it was begun, if too many wait or its turn did not come in time."""
        turn, threads = self._of_this_loop()
        if self._waiting >= self.waiting:
            raise Busy("too many people are saving at this moment; try again in a second")
        self._waiting += 1
        me, mine = object(), False
        try:
            with anyio.move_on_after(self.patience_s):
                await turn.acquire_on_behalf_of(me)
                mine = True
        finally:
            self._waiting -= 1
        if not mine:
            raise Busy("saving takes long at this moment; try again in a second")
        try:
            return await to_thread.run_sync(work, limiter=threads)
        finally:
            turn.release_on_behalf_of(me)

    def _of_this_loop(self) -> tuple[CapacityLimiter, CapacityLimiter]:
        try:
            return self._limiters.get()
        except LookupError:
            self._limiters.set(limiters := (CapacityLimiter(self.at_once), CapacityLimiter(math.inf)))
            return limiters
