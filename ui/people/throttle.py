"""Throttling of password attempts: the one place that counts failed logins.

    device   a known browser under this name: it has its own count, and no other count stops it
    address  everybody else, if the address is known to be theirs: the first failures are free, then each wait is twice
             the one before
    name     everybody else, whatever their address

An attempt is made only if every count for it allows it; otherwise none counts it. So somebody stopped at the address
cannot keep a name closed, and attempts at a closed name do not use up the address of an office. Counts are in memory,
so a restart forgets them; keys are hashed and bounded in number, whatever strangers send.
"""

from __future__ import annotations

import hashlib
import heapq
import secrets
import threading
import time
from collections.abc import Callable, Iterable

from trueup.errors import TrueupError

MAX_KEYS = 10_000


class Throttled(TrueupError):
    """Too many failed logins, or too many at once."""

    def __init__(self, message: str, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Throttle:
    """Failures per key: `free` of them cost nothing, then each one doubles the wait, from one second to `longest_s`."""

    def __init__(self, free: int, longest_s: float = 900, clock: Callable[[], float] = time.monotonic):
        self.free, self.longest_s, self.clock = free, longest_s, clock
        self._failures: dict[bytes, tuple[int, float]] = {}  # failures, and when the next attempt is allowed
        self._salt = secrets.token_bytes(16)

    def __len__(self) -> int:
        return len(self._failures)

    def wait(self, key: str) -> float:
        """Seconds until this key may try; 0: now. Counts nothing."""
        return max(0.0, self._failures.get(self._hash(key), (0, 0.0))[1] - self.clock())

    def count(self, key: str) -> None:
        """Count an attempt before it is checked, so that many at once are not all free. Success takes it back."""
        now, hashed = self.clock(), self._hash(key)
        failures, allowed_at = self._failures.get(hashed, (0, now))
        if now > allowed_at + self.longest_s:
            failures = 0
        over = failures + 1 - self.free
        if hashed not in self._failures and len(self._failures) >= MAX_KEYS:
            self._make_room(now)
        self._failures[hashed] = (failures + 1, now + (min(2.0 ** min(over, 30), self.longest_s) if over >= 0 else 0))

    def forgive(self, key: str, *, all_of_them: bool) -> None:
        """Take back an attempt that was right, or forget the key."""
        hashed = self._hash(key)
        failures, _ = self._failures.pop(hashed, (0, 0.0))
        if failures > 1 and not all_of_them:
            self._failures[hashed] = (failures - 1, self.clock())

    def _make_room(self, now: float) -> None:
        """Forget keys without effect, or else those with the shortest wait, so that a flood does not open a lock."""
        self._failures = {k: v for k, v in self._failures.items() if v[1] + self.longest_s > now}
        if len(self._failures) >= MAX_KEYS:
            for key in heapq.nsmallest(MAX_KEYS // 10, self._failures, key=lambda key: self._failures[key][1]):
                del self._failures[key]

    def _hash(self, key: str) -> bytes:
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=16).digest()


class Attempts:
    """The rule of this module over three counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.by_device = Throttle(free=5, clock=clock)
        self.by_address = Throttle(free=20, clock=clock)  # a whole team may sit behind one address
        self.by_name = Throttle(free=5, clock=clock)
        self._lock = threading.Lock()

    def begin(self, name: str, address: str | None, device: str | None) -> None:
        """Count an attempt at a password before it is checked. Throttled: it must wait, and counts nowhere.

        address  None: not known to be one person's or office's
        device   the token of a known browser under this name; None for any other
        """
        with self._lock:
            counts = list(self._counts(name, address, device))
            wait = max(count.wait(key) for count, key in counts)
            if not wait:
                for count, key in counts:
                    count.count(key)
        if wait:
            seconds = int(wait) + 1
            raise Throttled(f"too many failed attempts; try again in {_duration(seconds)}", seconds)

    def succeeded(self, name: str, address: str | None, device: str | None) -> None:
        """Take back an attempt that was right. It does not clear guesses at other accounts, and a known browser's does
        not clear strangers' guesses at its name."""
        with self._lock:
            for count, key in self._counts(name, address, device):
                count.forgive(key, all_of_them=count is not self.by_address)

    def _counts(self, name: str, address: str | None, device: str | None) -> Iterable[tuple[Throttle, str]]:
        if device is not None:
            yield self.by_device, device
            return
        if address is not None:
            yield self.by_address, address
        yield self.by_name, name


def _duration(seconds: int) -> str:
    return f"{seconds} seconds" if seconds < 120 else f"{-(-seconds // 60)} minutes"
