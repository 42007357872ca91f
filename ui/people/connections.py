"""Limits on connections, before any of our code runs.

    REQUEST_S        seconds for a whole request, head and body, after its first byte or after the connection
    STALLED_S        seconds within which a reader must read a part of a response
    MOST             most connections; beyond them a new one replaces the oldest that is not at work on a request
    MAX_HEAD         bytes of a request's head that came in pieces; ui.people.guard checks the whole

So a client that holds connections open without a request (a "slow loris") displaces only its own, and a body that never
arrives holds nothing but its own connection.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from ui.people.guard import MAX_HEAD

REQUEST_S = 20.0
STALLED_S = 30.0
KEEP_ALIVE_S = 5
MOST = 500


class Limited(H11Protocol):
    """A connection that ends if the client is too slow."""

    at_rest: ClassVar[dict[Limited, None]] = {}
    """Connections of one server that are not at work on a request, the oldest first."""
    most: ClassVar[int] = MOST
    request_s: ClassVar[float] = REQUEST_S
    stalled_s: ClassVar[float] = STALLED_S

    _due: asyncio.TimerHandle | None = None
    _stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()
        self.at_rest[self] = None
        if len(self.connections) > self.most:
            next(iter(self.at_rest)).close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self.resume_writing()
        self.at_rest.pop(self, None)
        super().connection_lost(exc)

    def handle_events(self) -> None:
        super().handle_events()
        coming = self.conn.their_state is h11.SEND_BODY or (
            self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        )
        if not coming:
            self._disarm()
        elif self._due is None:
            self._arm()
        if self.cycle is None or self.cycle.response_complete or coming:
            self.at_rest.setdefault(self)
        else:
            self.at_rest.pop(self, None)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.at_rest.setdefault(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(self.stalled_s, self.close)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def close(self) -> None:
        self.at_rest.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def _arm(self) -> None:
        self._disarm()
        self._due = self.loop.call_later(self.request_s, self.close)

    def _disarm(self) -> None:
        if self._due is not None:
            self._due.cancel()
            self._due = None


def server(app: Any) -> uvicorn.Server:
    """The server, in one process: Gradio has its sessions in memory, and SQLite has one writer."""
    logging.getLogger("uvicorn.error").addFilter(_is_worth_a_line)
    protocol = type("Connection", (Limited,), {"at_rest": {}})  # each server's own
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=protocol,
            ws="none",
            log_level="warning",
            proxy_headers=False,  # ui.people.sites decides which proxies count
            server_header=False,
            limit_concurrency=2 * Limited.most,
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=1,
        )
    )


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """False for lines that strangers can write into the server's log by the thousand, and for the heartbeat of an open
    page that Ctrl-C ended."""
    text = str(record.msg)
    cancelled = record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError)
    return not (cancelled or text.startswith(_NOISE) or text.endswith("timeout graceful shutdown exceeded"))


_NOISE = ("Invalid HTTP request", "Unsupported upgrade", "Exceeded concurrency", "No supported WebSocket")
