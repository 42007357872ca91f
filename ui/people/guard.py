"""The middleware that decides who gets in, and sets the headers that keep a page from loading or telling anything
elsewhere.

Every request passes here before any route is looked up.

    path       `ui.people.access` lists it, and allows it to the person
    Host       a name of this server (`ui.people.sites`): a stranger's page cannot read by pointing its own name here
    Origin     this site's own, for reads too: Gradio answers with CORS headers that would let others read
    size       a few kB without a session, in a form of known type and length; no body is read before that is checked
    session    a cookie that `ui.people.accounts` knows, with the role that the path needs; a stream ends with it
    failures   an unexpected error is one line in the log with a number, and a 500 with the number; it is a 503 if the
               store cannot be reached, so that the page tries again
"""

from __future__ import annotations

import json
import re
import secrets
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from email.message import Message as Header
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
import sqlalchemy as sa
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from starlette.requests import HTTPConnection

from trueup.errors import of_the_machine
from trueup.pages.wording import report_policy
from ui.html import PLAIN_POLICY, render, sentence
from ui.people.access import Needs, is_blind, is_named, needs, takes_form
from ui.people.accounts import COOKIE, DEVICE_COOKIE, People, Person
from ui.people.sign_in import OPEN_THE_LINK
from ui.people.sites import MAX_HOST, Site, address_of, origin_of

# Gradio's front end compiles templates, hence 'unsafe-eval'; nothing is loaded from, or sent to, any other host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; frame-ancestors 'none'; base-uri 'self'; "
    "form-action 'self'"
)
# A report may contain model text. It runs in an origin of its own, without cookies, and can fetch nothing. Its only
# script is the one that ships with Trueup, allowed by its hash; a report of an older version runs none.
REPORT_POLICY = f"{report_policy()}; frame-ancestors 'none'; sandbox allow-scripts"
MAX_BODY = 1 << 20
"""Most bytes of a request. A label with a long note and an ideal answer is far smaller."""
MAX_FORM = 8 << 10
"""Most bytes of a form: the longest name and password, with each letter escaped, and the next page."""
MAX_QUERY = 2 << 10
"""Most bytes of a path with its query."""
MAX_HEAD = 16 << 10
CHECK_S = 2.0
"""Seconds between two checks of an open stream's session."""

# ---- The guard --------------------------------------------------------------------------------------------------

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Scope = dict[str, Any]

# Sessions are looked up on threads of their own, so that the guard answers while all threads of routes wait.
_ASKING: RunVar[CapacityLimiter] = RunVar("asking")


class Guard:
    """ASGI middleware; plain, because Starlette's own base class would buffer Gradio's event streams."""

    def __init__(self, app: Any, people: People, site: Site):
        self.app, self.people, self.site = app, people, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        answer = _Outgoing(send)
        try:
            await self._guarded(scope, receive, answer)
        except Exception as error:
            await _failed(scope, answer, error)
        else:
            await answer.end()

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Outgoing) -> None:
        send = answer.send
        if sum(len(key) + len(value) for key, value in scope["headers"]) > MAX_HEAD:
            return await _refuse(scope, send, 431, f"the head of a request has at most {MAX_HEAD} bytes")
        scope["headers"] = _with_own_cookies(scope["headers"])
        request = HTTPConnection(scope)
        if problem := _not_ours(scope, request, self.site):
            return await _refuse(scope, send, 403, problem)
        role, person = needs(scope["path"]), None
        if too_much := _too_much(scope, request, role):
            return await _refuse(scope, send, *too_much)
        cookie = request.cookies.get(COOKIE)
        if role != "nobody":
            person = await self._who(cookie)
            if person is None:
                return await self._unknown(scope, request, send)
            if problem := _not_allowed(scope, person, role):
                return await _refuse(scope, send, 403, problem, page=_wants_page(scope, request))
            if too_much := _bad_form(scope, request):
                return await _refuse(scope, send, *too_much)
            if not is_named(scope["method"], scope["path"]):
                return await _refuse(scope, send, 404, "there is no such page here")
        state = scope.setdefault("state", {})
        state["person"] = person
        peer = (scope.get("client") or ("",))[0]
        state["address"] = address_of(peer, ", ".join(request.headers.getlist("x-forwarded-for")), self.site)
        origin = self.site.origin
        if origin is not None and origin_of(f"{origin.scheme}://{request.headers['host']}") == origin:
            scope["scheme"] = origin.scheme  # the proxy ends TLS; links use the scheme of the browser
        listening = receive if person is None else answer.while_signed_in(receive, lambda: self._who(cookie))
        await self.app(scope, listening, answer.send)

    async def _who(self, cookie: str | None) -> Person | None:
        if not cookie:
            return None
        try:
            limiter = _ASKING.get()
        except LookupError:
            _ASKING.set(limiter := CapacityLimiter(8))
        return await to_thread.run_sync(self.people.who, cookie, limiter=limiter)

    async def _unknown(self, scope: Scope, request: HTTPConnection, send: Send) -> None:
        """Without a session, a page leads to the login, or tells which link to open; other requests are refused."""
        if not _wants_page(scope, request):
            return await _refuse(scope, send, 401, "sign in first")
        if not await to_thread.run_sync(self.people.any_active):
            return await _refuse(scope, send, 401, OPEN_THE_LINK, page=True)
        target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        target = quote(target, safe="/")
        location = "/login" if target == "/" or len(target) > MAX_QUERY // 4 else f"/login?next={target}"
        await _respond(send, 303, b"", [(b"location", location.encode())])


class _Outgoing:
    """A response. It gets our headers, and lasts no longer than the session."""

    def __init__(self, send: Send):
        self._send = send
        self.begun = self.complete = self.streams = self.cut = False

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            present = {key.lower(): value for key, value in message["headers"]}
            self.streams = present.get(b"content-type", b"").startswith(b"text/event-stream")
            message["headers"] = [*message["headers"], *(pair for pair in _HEADERS if pair[0] not in present)]
        elif message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)
        await self._send(message)

    def while_signed_in(self, receive: Receive, who: Callable[[], Awaitable[Person | None]]) -> Receive:
        """A `receive` that tells a stream that its reader is gone as soon as the session is."""

        async def listening() -> Any:
            while True:
                with anyio.move_on_after(CHECK_S):
                    return await receive()
                if self.streams and await who() is None:
                    self.cut = True
                    return {"type": "http.disconnect"}

        return listening

    async def end(self) -> None:
        """Send the end of a stream that was cut; without it the server would log a failure."""
        if self.cut and self.begun and not self.complete:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _failed(scope: Scope, answer: _Outgoing, error: Exception) -> None:
    """Write one line to the log. If there is no response yet, send a 500, or a 503 if trying again may succeed."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # type: ignore[assignment]
    number = secrets.token_hex(4)
    sys.stderr.write(f"{_line(number, scope, error)}\n")
    sys.stderr.flush()
    if answer.begun:
        return
    text, status, more = f"something went wrong here; the server's log says more under number {number}", 500, []
    if isinstance(error, sa.exc.OperationalError) or of_the_machine(error):  # its database is away, its disk is full
        text = f"the labels are out of reach at this moment; the server's log says why under number {number}"
        status, more = 503, [(b"retry-after", b"5")]
    page = scope["type"] == "http" and "text/html" in HTTPConnection(scope).headers.get("accept", "")
    await _refuse(scope, answer.send, status, text, page, more)


def _line(number: str, scope: Scope, error: Exception) -> str:
    """The line of the log: the request, the error, and the last places in our own files."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(_ROOT) and "site-packages" not in f.filename] or frames
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(own[-4:]))
    text = " ".join(str(getattr(error, "orig", error))[:1000].split())[:300]  # of a database, without the statement
    text = "".join(character if character.isprintable() else "?" for character in text)
    request = f"{scope.get('method', 'WEBSOCKET')} {scope['path'][:200]!r}"
    return f"error {number}: {request}: {type(error).__name__}: {text} ({places})"


_ROOT = Path(__file__).parents[2]


def _with_own_cookies(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers with our own well-formed cookies only. Other ports of this machine set others, and unquoting one
    takes time quadratic in its length."""
    others = [(key, value) for key, value in headers if key != b"cookie"]
    cookies = [part.strip() for key, value in headers if key == b"cookie" for part in value.split(b";")]
    own = [part for part in cookies if _COOKIE.fullmatch(part)]
    return [*others, (b"cookie", b"; ".join(own))] if own else others


_COOKIE = re.compile(rb"(%s|%s)=[A-Za-z0-9_.~=-]{1,2000}" % (COOKIE.encode(), DEVICE_COOKIE.encode()))


def _not_ours(scope: Scope, request: HTTPConnection, site: Site) -> str | None:
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if not site.knows(host):
        return (
            f"this server does not answer to the name {host[:MAX_HOST]!r}; if it is one of its names, say so with --url"
        )
    if origin is not None and not site.is_own(origin, host):
        return "requests from other sites are refused"
    writes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
    if writes and request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests from other sites are refused"
    return None


def _too_much(scope: Scope, request: HTTPConnection, role: Needs) -> tuple[int, str] | None:
    """Status and reason, if a request is too long, or comes from a stranger and is no form."""
    if "transfer-encoding" in request.headers:
        return 413, "say the length of what you send (Content-Length)"
    most = MAX_FORM if takes_form(scope["path"]) else MAX_BODY
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= most):
        return 413, f"at most {most} bytes can be sent at once"
    if len(scope["path"]) + len(scope["query_string"]) > MAX_QUERY:
        return 414, f"an address has at most {MAX_QUERY} characters"
    return _bad_form(scope, request) if role == "nobody" else None


def _bad_form(scope: Scope, request: HTTPConnection) -> tuple[int, str] | None:
    """Status and reason, if the body for a form's path is no form. A charset of the sender's choice may take seconds to
    decode, or end in an error."""
    empty = request.headers.get("content-length", "0").strip("0") == ""
    if not takes_form(scope["path"]) or empty or _is_form(request.headers.get("content-type", "")):
        return None
    return 415, "send a form as application/x-www-form-urlencoded in UTF-8"


def _is_form(content_type: str) -> bool:
    if len(content_type) > 100:
        return False
    kind = Header()
    kind["content-type"] = content_type
    charset = kind.get_param("charset", "utf-8")
    plain = kind.get_content_type() == "application/x-www-form-urlencoded"
    return plain and isinstance(charset, str) and charset.lower() in ("utf-8", "utf8")


def _not_allowed(scope: Scope, person: Person, role: Needs) -> str | None:
    if role == "admin" and not person.is_admin:
        return "this is for admins of the campaign"
    # These pages write to /api/v1 only. Gradio's other routes would take uploads, and run functions.
    if is_blind(scope["path"]) and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
        return "labels are written to /api/v1"
    return "there is no such connection here" if scope["type"] == "websocket" else None


def _wants_page(scope: Scope, request: HTTPConnection) -> bool:
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return reads and "text/html" in request.headers.get("accept", "")


_HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer, forms would send `Origin: null`
]
_TITLES = {
    401: "Not signed in",
    403: "This page is not for you",
    500: "Something went wrong",
    503: "Not at this moment",
}


async def _refuse(
    scope: Scope, send: Send, status: int, problem: str, page: bool = False, more: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    if scope["type"] == "websocket":  # before it is accepted: the server answers the handshake with 403
        return await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})
    if page:
        html = render(
            "message",
            title=_TITLES[status],
            text=sentence(problem),
            link=("/", "Back to the start") if status != 401 else None,
        )
        headers = [(b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", PLAIN_POLICY.encode())]
        return await _respond(send, status, html.encode(), [*headers, *more])
    body = json.dumps({"detail": problem}).encode()
    await _respond(send, status, body, [(b"content-type", b"application/json"), *more])


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
