"""Who gets in, and the headers that keep a page from loading or telling anything elsewhere.

Every request passes here before any route is looked up, and what is not allowed by name is refused: a route that
somebody adds is closed until it is written into this file, and Gradio's own routes are under the same rule.

    Host       a name of this server, so that a stranger's page cannot read by pointing its own name here
    Origin     this site's own, for reads too: Gradio answers with CORS headers that would let others read
    size       of whoever has no session a few kB, of a form that says what it is; nothing is read before that is known
    session    a cookie that `ui.people.accounts` knows, with the role that the path needs; a stream ends with it
    failures   what nobody expected is one line in the log with a number, and a 500 that says that number; a 503 where
               the store is out of reach, so that the page asks again
"""

from __future__ import annotations

import ipaddress
import json
import re
import secrets
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from email.message import Message as Header
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, urlsplit

import anyio
import sqlalchemy as sa
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar
from starlette.requests import HTTPConnection

from trueup.errors import TrueupError, of_the_machine
from trueup.pages.wording import report_policy
from ui.html import PLAIN_POLICY, render, sentence
from ui.people.accounts import COOKIE, DEVICE_COOKIE, People, Person
from ui.people.sign_in import OPEN_THE_LINK

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
MAX_FORM = 8 << 10
"""Bytes of a form: the longest name and password, each letter of it escaped, and where to go on."""
MAX_QUERY = 2 << 10
"""Bytes of a path with its query."""
MAX_HEAD = 16 << 10
MAX_HOST = 255
CHECK_S = 2.0
"""How often the session of an open stream is looked up."""

# ---- Who may go where -------------------------------------------------------------------------------------------

Needs = Literal["nobody", "annotator", "admin"]

_OPEN = ("/login", "/invite", "/enter", "/favicon.ico")
_BLIND = ("/label", "/vote")
_MOUNTED = (*_BLIND, "/open", "/admin", "/compare")
_FORMS = ("/login", "/invite", "/logout", "/password", "/people")
_ANNOTATORS = (*_BLIND, "/static", "/logout", "/password", "/api/v1")
_ADMIN_API = ("/api/v1/admin", "/api/v1/open")

_GRADIO_READS = (
    "",
    "/",
    "/theme.css",
    "/assets/*",
    "/static/js/iframeResizer.contentWindow.min.js",
    "/gradio_api/heartbeat/*",
)
_GRADIO_WRITES = ("/gradio_api/run/predict",)
"""Of Gradio's routes those that the pages load, below where each is mounted. Others fetch addresses, serve files, take
uploads, tell what runs."""


def needs(path: str) -> Needs:
    """Who may ask for this path. Results, reports and whatever is not named here are for admins: an annotator who
    knows the win rate does not label blind."""
    if _within(path, _OPEN):
        return "nobody"
    if path == "/" or (_within(path, _ANNOTATORS) and not _within(path, _ADMIN_API)):
        return "annotator"
    return "admin"


def is_named(method: str, path: str) -> bool:
    """Whether a path below a mounted Gradio application is one of those that its page loads; True of any other path."""
    root = next((root for root in _MOUNTED if _within(path, (root,))), None)
    if root is None:
        return True
    below = path.removeprefix(root)
    if method in ("GET", "HEAD"):
        return any(_fits(below, pattern) for pattern in _GRADIO_READS)
    return method == "POST" and root not in _BLIND and below in _GRADIO_WRITES


def _fits(below: str, pattern: str) -> bool:
    """A star stands for names of files, one or more: no address, no parent folder, nothing odd."""
    if not pattern.endswith("*"):
        return below == pattern
    rest = below.removeprefix(pattern[:-1])
    return rest != below and all(_PLAIN.fullmatch(part) for part in rest.split("/"))


_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def _within(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)


# ---- Under which names ------------------------------------------------------------------------------------------


class Origin(NamedTuple):
    """Scheme, host and port, each in the one form in which they are compared."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


_PORTS = {"http": 80, "https": 443}


def origin_of(url: str) -> Origin | None:
    """What a URL's origin is, however it is written: capitals, the scheme's own port, a final slash or dot, the many
    forms of an IPv6 address. None: it is no http(s) URL, or says more than an origin.

    Letters beyond ASCII stand in no Host and Origin that a browser sends: `site` translates them once.
    """
    if len(url) > MAX_HOST + 20 or not url.isascii() or not url.isprintable() or "\\" in url:
        return None
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError:
        return None
    more = parts.path not in ("", "/") or parts.query or parts.fragment or url.endswith(("?", "#"))
    if scheme not in _PORTS or not host or more or not _NETLOC.fullmatch(parts.netloc):
        return None
    host = host.removesuffix(".")
    if ":" in host:
        try:
            host = ipaddress.IPv6Address(host).compressed
        except ValueError:
            return None
    return Origin(scheme, host, _PORTS[scheme] if port is None else port) if host else None


_NETLOC = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Site:
    """The names of this server. Without any it is for this machine alone."""

    names: frozenset[str] = frozenset()
    any_address: bool = False
    """Any IP address is a name of it too: bound to more than loopback. Only names can be pointed here by a stranger."""
    origin: Origin | None = None
    """Where people reach it, if a proxy stands in between."""
    proxies: tuple[Network, ...] = ()
    """Whose X-Forwarded-For is believed."""

    @property
    def url(self) -> str | None:
        return None if self.origin is None else str(self.origin)

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server; the port does not matter, it may be forwarded."""
        found = origin_of(f"http://{host}")
        if found is None:
            return False
        if found.host in self.names or is_loopback(found.host):
            return True
        return self.any_address and _address(found.host) is not None

    def is_own(self, origin: str, host: str) -> bool:
        """Whether an Origin header is that of the page which this Host serves; another port is another site."""
        asking = origin_of(origin)
        if asking is None or origin.endswith("/"):
            return False
        return asking in (origin_of(f"http://{host}"), origin_of(f"https://{host}"), self.origin)


def site(host: str, url: str | None, people: People, proxies: Sequence[str] = ()) -> Site:
    """How a server bound to `host` is known; refuses to be reached from elsewhere before anybody can sign in."""
    names = {host.strip("[]").lower().removesuffix(".")}
    origin = None
    if url is not None:
        origin = origin_of(_ascii(url))
        if origin is None:
            raise TrueupError(
                f"--url {url}: give the scheme and host that people open, such as https://label.example.org"
            )
        names.add(origin.host)
    outside = sorted(name for name in names if not is_loopback(name))
    if outside and not people.any_active():
        option = "--url" if is_loopback(host.strip("[]")) else "--host"
        raise TrueupError(
            f"{option} {outside[0]}: there are no accounts, so the pages "
            "are served to this machine only (127.0.0.1): anybody else who reaches them could label in your name.\n"
            "Add an account first: trueup accounts add CONFIG NAME --role admin\n"
            "Or reach them from another machine by forwarding the port: ssh -L 7860:127.0.0.1:7860 THIS_MACHINE"
        )
    trusted = tuple(_network(proxy) for proxy in proxies)
    return Site(frozenset(names), any_address=not is_loopback(host.strip("[]")), origin=origin, proxies=trusted)


def _ascii(url: str) -> str:
    """A URL whose host is in any script, as a browser would write it."""
    if url.isascii():
        return url
    import idna  # comes with gradio

    try:
        scheme, _, rest = url.partition("://")
        host, slash, more = rest.partition("/")
        name, colon, port = host.partition(":")
        return f"{scheme}://{idna.encode(name, uts46=True).decode()}{colon}{port}{slash}{more}"
    except idna.IDNAError:
        return url


def _network(text: str) -> Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise TrueupError(
            f"--proxy {text}: {error}; give the address of the proxy in front, such as 127.0.0.1, or its network, "
            "such as 172.16.0.0/12"
        ) from None


def is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, ipaddress.IPv6Address) else found


# ---- From where -------------------------------------------------------------------------------------------------


def address_of(peer: str | None, forwarded: str, site: Site) -> str | None:
    """Whose failed logins are counted together; None: the address is not known to be of one person or office.

        peer is one of --proxy         the last address in X-Forwarded-For that is not a proxy's; None if there is none
        peer is this machine           None: it may be a proxy, or ssh, that says nothing of who comes through it
        peer is of a private network   None if people come by --url and no --proxy was given: it is likely that proxy
        any other peer                 its address; of IPv6 the network, because one machine has 2^64 addresses there

    Without --proxy nobody's header is read, so that whoever writes one gains nothing.
    """
    address = _address(peer or "")
    if address is None:
        return None
    if _is_in(address, site.proxies):
        hops = [_hop(hop) for hop in forwarded[-1000:].split(",")[-20:]] if forwarded else []
        while hops and hops[-1] is not None and _is_in(hops[-1], site.proxies):
            hops.pop()
        address = hops[-1] if hops else None
        if address is None:
            return None
    elif address.is_loopback or (site.origin is not None and not site.proxies and address.is_private):
        return None
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address.packed, 64), strict=False))
    return str(address)


def _hop(text: str) -> Address | None:
    """One address of X-Forwarded-For; some proxies write its port beside it."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    return _address(text)


def _is_in(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)


# ---- The guard --------------------------------------------------------------------------------------------------

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Scope = dict[str, Any]

# Threads of their own, so that who may come in is known while those of the routes are all waiting for something.
_ASKING: RunVar[CapacityLimiter] = RunVar("asking")


class Guard:
    """ASGI middleware; plain, because Starlette's own base class would buffer Gradio's event streams."""

    def __init__(self, app: Any, people: People, site: Site):
        self.app, self.people, self.site = app, people, site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        answer = _Answer(send)
        try:
            await self._guarded(scope, receive, answer)
        except Exception as error:
            await _failed(scope, answer, error)
        else:
            await answer.end()

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        send = answer.send
        if sum(len(key) + len(value) for key, value in scope["headers"]) > MAX_HEAD:
            return await _refuse(scope, send, 431, f"the head of a request has at most {MAX_HEAD} bytes")
        scope["headers"] = _with_own_cookies(scope["headers"])
        asked = HTTPConnection(scope)
        if problem := _not_ours(scope, asked, self.site):
            return await _refuse(scope, send, 403, problem)
        wanted, person = needs(scope["path"]), None
        if too_much := _too_much(scope, asked, wanted):
            return await _refuse(scope, send, *too_much)
        cookie = asked.cookies.get(COOKIE)
        if wanted != "nobody":
            person = await self._who(cookie)
            if person is None:
                return await self._unknown(scope, asked, send)
            if problem := _not_allowed(scope, person, wanted):
                return await _refuse(scope, send, 403, problem, page=_wants_page(scope, asked))
            if too_much := _bad_form(scope, asked):
                return await _refuse(scope, send, *too_much)
            if not is_named(scope["method"], scope["path"]):
                return await _refuse(scope, send, 404, "there is no such page here")
        state = scope.setdefault("state", {})
        state["person"] = person
        peer = (scope.get("client") or ("",))[0]
        state["address"] = address_of(peer, ", ".join(asked.headers.getlist("x-forwarded-for")), self.site)
        origin = self.site.origin
        if origin is not None and origin_of(f"{origin.scheme}://{asked.headers['host']}") == origin:
            scope["scheme"] = origin.scheme  # the proxy ends TLS; what is linked to here is as people came
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

    async def _unknown(self, scope: Scope, asked: HTTPConnection, send: Send) -> None:
        """No session: a page leads to the login, or says which link to open; anything else is refused."""
        if not _wants_page(scope, asked):
            return await _refuse(scope, send, 401, "sign in first")
        if not await to_thread.run_sync(self.people.any_active):
            return await _refuse(scope, send, 401, OPEN_THE_LINK, page=True)
        target = scope["path"] + (f"?{scope['query_string'].decode('latin-1')}" if scope["query_string"] else "")
        target = quote(target, safe="/")
        location = "/login" if target == "/" or len(target) > MAX_QUERY // 4 else f"/login?next={target}"
        await _respond(send, 303, b"", [(b"location", location.encode())])


class _Answer:
    """What a route answers, on its way out: with our headers, and not for longer than the session lasts."""

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
        """`receive` that tells a stream, which listens for it, that its reader is gone when the session is."""

        async def listening() -> Any:
            while True:
                with anyio.move_on_after(CHECK_S):
                    return await receive()
                if self.streams and await who() is None:
                    self.cut = True
                    return {"type": "http.disconnect"}

        return listening

    async def end(self) -> None:
        """The last word of a stream that was cut, without which the server would call it a failure."""
        if self.cut and self.begun and not self.complete:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _failed(scope: Scope, answer: _Answer, error: Exception) -> None:
    """One line in the log, and if nothing was answered yet, a status: 503 where the same again may be right."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]  # type: ignore[assignment]
    number = secrets.token_hex(4)
    sys.stderr.write(f"{_line(number, scope, error)}\n")
    sys.stderr.flush()
    if answer.begun:
        return
    said, status, more = f"something went wrong here; the server's log says more under number {number}", 500, []
    if isinstance(error, sa.exc.OperationalError) or of_the_machine(error):  # its database is away, its disk is full
        said = f"the labels are out of reach at this moment; the server's log says why under number {number}"
        status, more = 503, [(b"retry-after", b"5")]
    page = scope["type"] == "http" and "text/html" in HTTPConnection(scope).headers.get("accept", "")
    await _refuse(scope, answer.send, status, said, page, more)


def _line(number: str, scope: Scope, error: Exception) -> str:
    """One line that says where to look: what was asked, what was raised, and the last places in our own files."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(_ROOT) and "site-packages" not in f.filename] or frames
    places = " < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in reversed(own[-4:]))
    text = " ".join(str(getattr(error, "orig", error))[:1000].split())[:300]  # of a database, without the statement
    text = "".join(character if character.isprintable() else "?" for character in text)
    asked = f"{scope.get('method', 'WEBSOCKET')} {scope['path'][:200]!r}"
    return f"error {number}: {asked}: {type(error).__name__}: {text} ({places})"


_ROOT = Path(__file__).parents[2]


def _with_own_cookies(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers whose cookies are ours and look so. Others, of what runs on other ports of this machine, are nothing to
    us, and to take one out of its quotes takes time by the square of its length."""
    kept = [(key, value) for key, value in headers if key != b"cookie"]
    said = [part.strip() for key, value in headers if key == b"cookie" for part in value.split(b";")]
    own = [part for part in said if _COOKIE.fullmatch(part)]
    return [*kept, (b"cookie", b"; ".join(own))] if own else kept


_COOKIE = re.compile(rb"(%s|%s)=[A-Za-z0-9_.~=-]{1,2000}" % (COOKIE.encode(), DEVICE_COOKIE.encode()))


def _not_ours(scope: Scope, asked: HTTPConnection, site: Site) -> str | None:
    host, origin = asked.headers.get("host", ""), asked.headers.get("origin")
    if not site.knows(host):
        return (
            f"this server does not answer to the name {host[:MAX_HOST]!r}; if it is one of its names, say so with --url"
        )
    if origin is not None and not site.is_own(origin, host):
        return "requests from other sites are refused"
    writes = scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD", "OPTIONS")
    if writes and asked.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return "requests from other sites are refused"
    return None


def _too_much(scope: Scope, asked: HTTPConnection, wanted: Needs) -> tuple[int, str] | None:
    """Status and reason, if a request is longer than any that is meant, or comes from anybody and is no form."""
    if "transfer-encoding" in asked.headers:
        return 413, "say the length of what you send (Content-Length)"
    most = MAX_FORM if wanted == "nobody" or _within(scope["path"], _FORMS) else MAX_BODY
    length = asked.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= most):
        return 413, f"at most {most} bytes can be sent at once"
    if len(scope["path"]) + len(scope["query_string"]) > MAX_QUERY:
        return 414, f"an address has at most {MAX_QUERY} characters"
    return _bad_form(scope, asked) if wanted == "nobody" else None


def _bad_form(scope: Scope, asked: HTTPConnection) -> tuple[int, str] | None:
    """Of what is to be a form. A charset that the sender chooses may take seconds to decode, or end in an error."""
    is_form = _within(scope["path"], _FORMS) or needs(scope["path"]) == "nobody"
    empty = asked.headers.get("content-length", "0").strip("0") == ""
    if not is_form or empty or _is_form(asked.headers.get("content-type", "")):
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


def _not_allowed(scope: Scope, person: Person, wanted: Needs) -> str | None:
    if wanted == "admin" and not person.is_admin:
        return "this is for admins of the campaign"
    # What these pages write goes to /api/v1. Gradio's routes beside them would take uploads, and run functions.
    if _within(scope["path"], _BLIND) and (scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD")):
        return "labels are written to /api/v1"
    return "there is no such connection here" if scope["type"] == "websocket" else None


def _wants_page(scope: Scope, asked: HTTPConnection) -> bool:
    reads = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
    return reads and "text/html" in asked.headers.get("accept", "")


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
