"""What the web application refuses, and the headers that keep a page from loading or telling anything elsewhere.

There are no accounts yet, so the application is for the person at this machine. Other web pages in the same browser
are strangers: they may not write (Origin), may not read by renaming themselves to 127.0.0.1 (Host), may not frame it.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

from trueup.errors import TrueupError

# Gradio's front end compiles templates, hence 'unsafe-eval'; nothing is loaded from, or sent to, any other host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
# A report is a file that may hold model text: it is shown, and can neither run nor fetch anything.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; sandbox"


def require_loopback(host: str) -> None:
    """Refuse to serve other machines: whoever reaches the page could label in your name."""
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = host == "localhost"
    if not loopback:
        raise TrueupError(
            f"--host {host}: the pages have no login, so they are served to this machine only (127.0.0.1). "
            "To reach them from another one, forward the port: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE"
        )


class Guard:
    """ASGI middleware; plain, because Starlette's own base class would buffer Gradio's event streams."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if problem := _problem(scope, headers):
            return await _refuse(send, problem)

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {key.lower() for key, _ in message["headers"]}
                for key, value in _HEADERS:
                    if key not in present:
                        message["headers"].append((key, value))
            await send(message)

        await self.app(scope, receive, with_headers)


_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def _problem(scope: dict[str, Any], headers: dict[str, str]) -> str | None:
    if not _is_loopback(f"//{headers.get('host', '')}"):
        return "this server answers to 127.0.0.1 and localhost only"
    origin = headers.get("origin")
    writes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
    # Any port counts: with a forwarded port the browser's address is not the one we listen on.
    if writes and origin is not None and not _is_loopback(origin):
        return "requests from other sites are refused"
    return None


def _is_loopback(url: str) -> bool:
    name = urlsplit(url).hostname or ""
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _refuse(send: Callable[[Any], Awaitable[None]], problem: str) -> None:
    body = json.dumps({"detail": problem}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
