"""Who gets in, and the headers that keep a page from loading or telling anything elsewhere.

Every request passes here before any route is looked up, and what is not allowed by name is refused: a route that
somebody adds is closed until it is written into this file, and Gradio's own routes are under the same rule.

    Host       a name of this server, so that a stranger's page cannot read by pointing its own name here
    Origin     this site's own, for reads too: Gradio answers with CORS headers that would let others read
    session    a cookie that `ui.accounts` knows, with the role that the path needs
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlsplit

from anyio import to_thread
from starlette.requests import HTTPConnection

from trueup.errors import TrueupError
from trueup.pages import report_policy
from ui.accounts import COOKIE, People, Person
from ui.entry import ENTRY_POLICY, OPEN_THE_LINK, message_page

# Gradio's front end compiles templates, hence 'unsafe-eval'; nothing is loaded from, or sent to, any other host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
# A report is a file that may hold model text: it runs the script that ships with Trueup, known by its hash, and nothing
# else, in an origin of its own without cookies; it can fetch nothing. One of an older version is a page without script.
REPORT_POLICY = f"{report_policy()}; frame-ancestors 'none'; sandbox allow-scripts"
MAX_BODY = 1 << 20
"""Bytes of a request: a label with a long note and an ideal answer is far below."""

# ---- Who may go where -------------------------------------------------------------------------------------------

Needs = Literal["nobody", "annotator", "admin"]

_OPEN = ("/login", "/invite", "/enter", "/favicon.ico")
_BLIND = ("/label", "/vote")
_ANNOTATORS = (*_BLIND, "/static", "/logout", "/api/v1")
_ADMIN_API = ("/api/v1/admin", "/api/v1/open")


def needs(path: str) -> Needs:
    """Who may ask for this path. Results, reports and whatever is not named here are for admins: an annotator who
    knows the win rate does not label blind."""
    if _within(path, _OPEN):
        return "nobody"
    if path == "/" or (_within(path, _ANNOTATORS) and not _within(path, _ADMIN_API)):
        return "annotator"
    return "admin"


def _within(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


# ---- Under which names ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Site:
    """The names of this server. Without any it is for this machine alone."""

    names: frozenset[str] = frozenset()
    any_address: bool = False
    """Any IP address is a name of it too: bound to more than loopback. Only names can be pointed here by a stranger."""
    url: str | None = None
    """Where people reach it, if a proxy stands in between: scheme and host."""

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server; the port does not matter, it may be forwarded."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self.names or is_loopback(name):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address

    def is_own(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of the page which this Host serves; another port is another site."""
        return origin in (f"http://{host}", f"https://{host}", self.url)


def site(host: str, url: str | None, people: People) -> Site:
    """How a server bound to `host` is known; refuses to be reached from elsewhere before anybody can sign in."""
    names = {host.strip("[]").lower()}
    if url is not None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/") or parts.query:
            raise TrueupError(
                f"--url {url}: give the scheme and host that people open, such as https://label.example.org"
            )
        names.add(parts.hostname)
        url = f"{parts.scheme}://{parts.netloc.lower()}"
    outside = sorted(name for name in names if not is_loopback(name))
    if outside and not people.any_active():
        option = "--url" if is_loopback(host.strip("[]")) else "--host"
        raise TrueupError(
            f"{option} {outside[0]}: there are no accounts, so the pages "
            "are served to this machine only (127.0.0.1): anybody else who reaches them could label in your name.\n"
            "Add an account first: trueup accounts add CONFIG NAME --role admin\n"
            "Or reach them from another machine by forwarding the port: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE"
        )
    return Site(frozenset(names), any_address=not is_loopback(host.strip("[]")), url=url)


def is_loopback(name: str) -> bool:
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# ---- The guard --------------------------------------------------------------------------------------------------

Send = Callable[[Any], Awaitable[None]]


class Guard:
    """ASGI middleware; plain, because Starlette's own base class would buffer Gradio's event streams."""

    def __init__(self, app: Any, people: People, site: Site):
        self.app, self.people, self.site = app, people, site

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        asked = HTTPConnection(scope)
        if problem := _not_ours(scope, asked, self.site):
            return await _refuse(scope, send, 403, problem)
        if problem := _too_much(asked):
            return await _refuse(scope, send, 413, problem)
        wanted, person = needs(scope["path"]), None
        if wanted != "nobody":
            person = await to_thread.run_sync(self.people.who, asked.cookies.get(COOKIE))
            if person is None:
                return await self._unknown(scope, asked, send)
            if problem := _not_allowed(scope, person, wanted):
                return await _refuse(scope, send, 403, problem, page=_wants_page(scope, asked))
        scope.setdefault("state", {})["person"] = person

        async def with_headers(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                present = {key.lower() for key, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(pair for pair in _HEADERS if pair[0] not in present)]
            await send(message)

        await self.app(scope, receive, with_headers)

    async def _unknown(self, scope: dict[str, Any], asked: HTTPConnection, send: Send) -> None:
        """No session: a page leads to the login, or says which link to open; anything else is refused."""
        if not _wants_page(scope, asked):
            return await _refuse(scope, send, 401, "sign in first")
        if not await to_thread.run_sync(self.people.any_active):
            return await _refuse(scope, send, 401, OPEN_THE_LINK, page=True)
        target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        location = "/login" if target == "/" else f"/login?next={quote(target, safe='/')}"
        await _respond(send, 303, b"", [(b"location", location.encode())])


def _not_ours(scope: dict[str, Any], asked: HTTPConnection, site: Site) -> str | None:
    host, origin = asked.headers.get("host", ""), asked.headers.get("origin")
    if not site.knows(host):
        return f"this server does not answer to the name {host!r}; if it is one of its names, say so with --url"
    if origin is not None and not site.is_own(origin, host):
        return "requests from other sites are refused"
    writes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
    if writes and asked.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests from other sites are refused"
    return None


def _too_much(asked: HTTPConnection) -> str | None:
    if "transfer-encoding" in asked.headers:
        return "say the length of what you send (Content-Length)"
    length = asked.headers.get("content-length", "0")
    return None if length.isdigit() and int(length) <= MAX_BODY else f"at most {MAX_BODY} bytes can be sent at once"


def _not_allowed(scope: dict[str, Any], person: Person, wanted: Needs) -> str | None:
    if wanted == "admin" and not person.is_admin:
        return "this is for admins of the campaign"
    # What these pages write goes to /api/v1. Gradio's routes beside them would take uploads, and run functions.
    if _within(scope["path"], _BLIND) and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
        return "labels are written to /api/v1"
    return None


def _wants_page(scope: dict[str, Any], asked: HTTPConnection) -> bool:
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return reads and "text/html" in asked.headers.get("accept", "")


_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, forms would send `Origin: null`
]


async def _refuse(scope: dict[str, Any], send: Send, status: int, problem: str, page: bool = False) -> None:
    if scope["type"] == "websocket":  # before it is accepted: the server answers the handshake with 403
        return await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})
    if page:
        title = "This page is not for you" if status == 403 else "Not signed in"
        html = message_page(
            title,
            problem[:1].upper() + problem[1:].rstrip(".") + ".",
            link=("/", "Back to the start") if status == 403 else None,
        )
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", ENTRY_POLICY.encode())]
        return await _respond(send, status, html.encode(), headers)
    await _respond(send, status, json.dumps({"detail": problem}).encode(), [(b"content-type", b"application/json")])


async def _respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    present = {key for key, _ in headers}
    headers = [
        *headers,
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *(pair for pair in _HEADERS if pair[0] not in present),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
