"""What strangers can make the server do: little, quickly, and nobody else waits for it.

A real server on a real socket. Each of these was seven seconds to for ever, or a traceback, before it was refused.
"""

from __future__ import annotations

import re
import resource
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import looping
import pytest
from fastapi.testclient import TestClient

from ui.app import label_app, run_app
from ui.pages.turns import Busy, Turns
from ui.people import connections, passwords
from ui.people.accounts import COOKIE, DEVICE_COOKIE, People
from ui.people.guard import MAX_BODY, MAX_FORM, MAX_QUERY
from ui.people.throttle import MAX_KEYS

PASSWORD = "four words are enough"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_LOG2_N", 4)
    monkeypatch.setattr(passwords, "NOBODY", passwords.hash_password("nobody's"))


@pytest.fixture
def served(compared: Any, serve: Any) -> Iterator[tuple[str, Any]]:
    """The address of a campaign with an admin Root and an annotator Ann, and its application."""
    made = label_app(compared.label())
    for name, role in (("Root", "admin"), ("Ann", "annotator")):
        made.state.people.add(name, role, PASSWORD)
    yield serve(made), made


def said(address: str, head: str, body: bytes = b"") -> tuple[int, bytes, float]:
    """Send this over a connection of its own: the status, the answer, and the seconds of processor time it took."""
    parts = urlsplit(address)
    with closing(socket.create_connection((parts.hostname, parts.port), timeout=20)) as wire:
        started = time.process_time()
        request = head.replace("HOST", parts.netloc).encode("latin-1").replace(b"\n", b"\r\n") + b"\r\n\r\n"
        wire.sendall(request + body)
        answer = b""
        while chunk := wire.recv(65536):
            answer += chunk
            if b"\r\n\r\n" in answer:
                length = re.search(rb"content-length: (\d+)", answer.lower())
                if length and len(answer.partition(b"\r\n\r\n")[2]) >= int(length[1]):
                    break
        return int(answer[9:12] or 0), answer, time.process_time() - started


def post(path: str, length: int, content_type: str = "application/x-www-form-urlencoded", more: str = "") -> str:
    return f"POST {path} HTTP/1.1\nHost: HOST\nContent-Length: {length}\nContent-Type: {content_type}{more}"


MARKS = "\u0344\u0301\u0323" * 40_000
BOUNDARY = "multipart/form-data; boundary=x"


def open_routes(app: Any) -> list[tuple[str, str]]:
    """Method and path of all that a stranger reaches, found by asking each route of the application."""
    client, found = TestClient(app, base_url="http://127.0.0.1", follow_redirects=False), []
    for path, operations in app_routes(app):
        for method in operations:
            answer = client.request(method, path)
            if "sign in first" not in answer.text:
                found.append((method, path))
    return found


def app_routes(app: Any) -> Iterator[tuple[str, set[str]]]:
    for route in app.routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from app_routes(inner)
        elif hasattr(route, "methods") and "{" not in route.path:
            yield route.path, set(route.methods or ()) - {"HEAD", "OPTIONS"}


def form(**values: str | bytes) -> bytes:
    return "&".join(f"{key}={quote(value)}" for key, value in values.items()).encode()


ODD_BODIES: list[tuple[str, str, bytes]] = [
    ("a name of combining marks", "", form(name=MARKS[:2000], password="x" * 20, token="x")),
    ("a short name of them", "", form(name=MARKS[:120], password="x" * 20, token="x")),
    ("a password of them", "", form(name="Ann", password=MARKS[:700], token="x")),
    ("one that expands", "", form(name="\ufdfa" * 100, password="\ufdfa" * 256, token="x")),
    ("no UTF-8", "", b"name=%ff%fe%80&password=%00%00&token=%ff"),
    ("bytes", "", b"\xff\xfe\x00" * 300),
    ("a thousand fields", "", b"&".join(b"a%d=1" % n for n in range(1000))),
    ("two of a field", "", b"name=a&name=b&password=c&password=d&token=e&token=f"),
    ("brackets", "", b"[" * 4000),
    ("half a pair", "", form(name="Ann", password="x", token="x").replace(b"Ann", b"%ED%A0%80")),
    ("NUL", "", form(name="An\0n", password="a\0b", next="/\0", token="\0")),
    ("a link elsewhere", "", form(next="//evil.example/" + "x" * 3000, name="Ann", password="x")),
    ("punycode", "; charset=punycode", b"name=" + b"a" * 4000 + b"&password=x"),
    ("utf-7", "; charset=utf-7", b"name=+AGE-&password=x"),
    ("idna", "; charset=idna", b"name=xn--" + b"a" * 3000),
    ("unicode_escape", "; charset=unicode_escape", rb"name=\u0061&password=x"),
    ("zip", "; charset=zip", b"name=a"),
    ("utf-16", "; charset=utf-16", "name=a".encode("utf-16")),
    ("a quoted charset", '; charset="utf-8; x"', b"name=a"),
    ("a charset in pieces", "; charset*0=puny; charset*1=code", b"name=a"),
    ("a long content type", "; a=" + "b" * 4000, b"name=a"),
]
ODD_HEADERS = {
    "cookies": f"\nCookie: {COOKIE}={'.'.join('x' * 43 for _ in range(200))}; {DEVICE_COOKIE}={'~.' * 1000}",
    "a cookie of backslashes": f'\nCookie: {COOKIE}="' + "\\" * 6000 + '"',
    "a cookie of quotes": "\nCookie: " + ";".join('a="\\"' for _ in range(1200)),
    "a cookie that is no text": f"\nCookie: {COOKIE}=" + "\xff" * 3000,
    "forwarded": "\nX-Forwarded-For: " + ", ".join("1.2.3.4" for _ in range(800)),
    "accept": "\nAccept: " + "text/html," * 700,
    "origin": "\nOrigin: http://" + "a." * 3000,
    "a thousand headers": "".join(f"\nX-{n}: y" for n in range(800)),
}


def test_no_request_of_a_stranger_takes_long_or_fails_whatever_it_holds(served: tuple[str, Any]) -> None:
    address, app = served
    routes = open_routes(app)
    assert {("POST", "/login"), ("POST", "/invite"), ("GET", "/enter"), ("GET", "/login")} <= set(routes)
    assert len(routes) == 6, "a route that strangers reach is to be thought about here"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    slow, wrong = [], []

    def ask(what: str, head: str, body: bytes = b"") -> int:
        took, status = [], 0
        for _ in range(3):  # the machine may be busy with something else
            status, _, seconds = said(address, head, body)
            took.append(seconds)
            if seconds < 0.1:
                break
        if min(took) >= 0.1:
            slow.append((what, head[:60], min(took)))
        if not 200 <= status < 500:
            wrong.append((what, head[:60], status))
        return status

    for method, path in routes:
        for name, more in ODD_HEADERS.items():
            ask(name, f"{method} {path} HTTP/1.1\nHost: HOST\nContent-Length: 0{more}")
        for query in (
            "token=" + "%ff" * 500,
            "next=" + quote(MARKS[:100]),
            "token=" + "a" * 8000,
            "&" * 1500,
            "%" * 1500,
        ):
            ask(f"query {query[:10]}", f"{method} {path}?{query} HTTP/1.1\nHost: HOST\nContent-Length: 0")
        for what, dress, body in ODD_BODIES:
            kind = "application/x-www-form-urlencoded" + dress
            status = ask(what, post(path, len(body), kind).replace("POST", method, 1), body)
            if dress:
                assert status == 415, (what, path)
        for kind in (
            BOUNDARY,
            f"{BOUNDARY}; charset=punycode",
            f"{BOUNDARY}; charset=utf-7",
            "application/json",
            "text/plain",
            "x",
        ):
            body = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\n' + b"a" * 4000 + b"\r\n--x--\r\n"
            assert ask(kind, post(path, len(body), kind).replace("POST", method, 1), body) == 415, (kind, path)
        too_long = post(path, MAX_FORM + 1).replace("POST", method, 1)
        assert ask("too long", too_long, b"name=") == 413, "it is refused before it is read"
        for length in ("-1", "1e3", "\xb2", "9" * 5000, "0x10", " "):
            status = ask(f"length {length[:9]}", post(path, 0).replace("POST", method, 1).replace(": 0", f": {length}"))
            assert status in (400, 413, 431), length
    assert slow == [] and wrong == [], (slow[:5], wrong[:5])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024, "KiB"
    assert said(address, "GET /login HTTP/1.1\nHost: HOST\nX-Long: " + "a" * 30_000)[0] in (400, 431)


def test_a_thousand_names_leave_no_memory_behind(served: tuple[str, Any]) -> None:
    address, app = served
    attempts = app.state.people.attempts
    with httpx.Client(base_url=address) as client:
        for number in range(60):
            name = f"{number} " + "x" * (MAX_FORM - 100 if number % 2 else 50)
            assert client.post("/login", data={"name": name, "password": "wrong"}).status_code in (401, 429)
    kept = attempts.by_name._failures
    assert len(kept) <= 30 and {len(key) for key in kept} == {16} and MAX_KEYS * 100 < 2 << 20


def test_what_a_stranger_sends_to_any_other_route_is_not_read(served: tuple[str, Any]) -> None:
    address, _ = served
    for path in (
        "/api/v1/labels",
        "/api/v1/open/jobs",
        "/people/invite",
        "/password",
        "/label/gradio_api/upload",
        "/x",
    ):
        for length in (10, MAX_BODY):  # none of it is sent, and nobody waits for it
            status, _, _ = said(address, post(path, length, "application/json"))
            assert status == (413 if length > MAX_FORM and path.startswith(("/people", "/password")) else 401), path
        assert said(address, post(path, MAX_BODY + 1, "application/json"))[0] == 413
    assert said(address, f"GET /label?{'a' * MAX_QUERY} HTTP/1.1\nHost: HOST")[0] == 414


# ---- Connections ------------------------------------------------------------------------------------------------


def test_two_hundred_connections_that_never_finish_a_head_stop_nobody(served: tuple[str, Any]) -> None:
    address, _ = served
    parts = urlsplit(address)
    with ExitStack() as opened:
        for number in range(200):
            wire = opened.enter_context(closing(socket.create_connection((parts.hostname, parts.port))))
            wire.sendall((b"GET / HTTP/1.1\r\nX-", post("/login", 500).encode() + b"\r\n\r\nname=", b"")[number % 3])
        started = time.monotonic()
        assert httpx.get(f"{address}/login", timeout=10).status_code == 200
        assert time.monotonic() - started < 5


@pytest.fixture
def bare(tmp_path: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The address of an application without a run behind it, under limits of its own."""

    def go(app: Any = None, **limits: float) -> str:
        for name, value in limits.items():
            monkeypatch.setattr(connections.Limited, name, value)
        (tmp_path / "run" / "sft").mkdir(parents=True)
        return str(serve(app or run_app(tmp_path / "run")))

    return go


def test_a_head_or_body_that_does_not_come_ends_its_connection(bare: Callable[..., str]) -> None:
    parts = urlsplit(bare(request_s=0.5))
    starts = [b"", b"GET /login HT", b"POST /login HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n"
              b"Content-Type: application/x-www-form-urlencoded\r\n\r\nname"]  # fmt: skip
    whole = f"GET /login HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    starts += [whole + b"GET /lo"]  # a second request on a connection that has answered one
    for start in starts:
        with closing(socket.create_connection((parts.hostname, parts.port), timeout=10)) as wire:
            wire.sendall(start)
            began, open_for = time.monotonic(), 0.0
            try:
                while True:
                    wire.settimeout(0.2)
                    try:
                        if not wire.recv(65536):
                            break
                    except TimeoutError:
                        if start:  # a byte now and then does not put it off
                            wire.sendall(b"a")
                    open_for = time.monotonic() - began
            except OSError:
                pass
            assert 0.2 < time.monotonic() - began < 5, (start[:20], open_for)


def test_for_a_new_connection_the_oldest_goes_that_asks_nothing(bare: Callable[..., str]) -> None:
    address = bare(most=20)
    parts = urlsplit(address)
    with ExitStack() as opened:
        idle = [
            opened.enter_context(closing(socket.create_connection((parts.hostname, parts.port)))) for _ in range(60)
        ]
        assert httpx.get(f"{address}/login", timeout=10).status_code == 401
        gone = 0
        for wire in idle:
            wire.settimeout(0.05)
            try:
                gone += wire.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                gone += 1
        assert 40 <= gone < 60


def test_a_reader_who_takes_nothing_is_let_go(bare: Callable[..., str]) -> None:
    from fastapi import FastAPI
    from fastapi.responses import Response

    app = FastAPI()
    app.state.service = app.state.votes = None
    app.add_api_route("/", lambda: Response(b"x" * (32 << 20)))
    parts = urlsplit(bare(app, stalled_s=0.5))
    with closing(socket.create_connection((parts.hostname, parts.port), timeout=10)) as wire:
        wire.sendall(f"GET / HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode())
        time.sleep(2)
        received = 0
        try:
            while chunk := wire.recv(1 << 20):
                received += len(chunk)
        except OSError:
            pass
        assert received < 32 << 20


# ---- Failures ---------------------------------------------------------------------------------------------------


def test_a_failure_is_one_line_in_the_log_and_a_number_on_the_page(
    served: tuple[str, Any], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, app = served
    secret = "secret of the inside \x1b[31m\nsecond line"
    monkeypatch.setattr(app.state.service, "renew", lambda who: 1 / 0 if who == "x" else fail(secret))
    account = next(row.account_id for row in app.state.people.accounts() if row.name == "Ann")
    with httpx.Client(base_url=address, cookies={COOKIE: app.state.people.open_session(account)}) as client:
        capfd.readouterr()
        for _ in range(3):
            answer = client.post("/api/v1/heartbeat", json={})
            assert answer.status_code == 500 and "secret" not in answer.text
            number = re.search(r"number ([0-9a-f]{8})", answer.json()["detail"])
            logged = "".join(capfd.readouterr())
            assert number and logged.count("\n") == 1 and "\x1b" not in logged and "Traceback" not in logged
            assert f"error {number[1]}: POST '/api/v1/heartbeat': RuntimeError: secret of the inside" in logged
            assert re.search(r"\(test_strangers.py:\d+ fail < ", logged)
        assert client.get("/api/v1/mirror").status_code == 200


def fail(text: str) -> None:
    raise RuntimeError(text)


def test_what_strangers_send_writes_nothing_into_the_log(
    served: tuple[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    address, _ = served
    capfd.readouterr()
    upgrade = "GET /x HTTP/1.1\nHost: HOST\nUpgrade: websocket\nConnection: upgrade"
    chunked = "POST /login HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked"
    for head in ("nonsense", "GET /login HTTP/1.1", "GET / HTTP/9.9\nHost: HOST", upgrade, chunked):
        assert 400 <= said(address, head)[0] < 500, head
    assert "".join(capfd.readouterr()) == ""


# ---- Turns at writing -------------------------------------------------------------------------------------------


def test_writes_wait_for_their_turn_and_are_sent_away_when_many_wait() -> None:
    import asyncio
    import threading

    opened = threading.Event()
    begun: list[int] = []

    def write(number: int) -> bool:
        begun.append(number)
        return opened.wait()

    async def crowd() -> list[Any]:
        turns = Turns(at_once=2, waiting=3, patience_s=0.3)
        waiting = [asyncio.ensure_future(turns.run(partial(write, number))) for number in range(8)]
        await asyncio.sleep(0.6)
        opened.set()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        return [*found, await turns.run(lambda: "and on it goes")]

    found = looping.run(crowd())
    assert sorted(begun) == [0, 1] and found[-1] == "and on it goes"
    assert [type(one) for one in found[:-1]] == [bool] * 2 + [Busy] * 6


def test_a_store_that_is_held_elsewhere_stops_no_page_and_the_presses_are_told_to_come_again(
    served: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, app = served
    account = next(row.account_id for row in app.state.people.accounts() if row.name == "Ann")
    cookie = {COOKIE: app.state.people.open_session(account)}

    def press(_: int) -> tuple[int, str | None, float]:
        started = time.monotonic()
        answer = httpx.post(f"{address}/api/v1/heartbeat", cookies=cookie, json={}, timeout=60)
        return answer.status_code, answer.headers.get("retry-after"), time.monotonic() - started

    with ThreadPoolExecutor(130) as pool, app.state.people.store.write():
        pressed = [pool.submit(press, number) for number in range(120)]
        time.sleep(1)
        started = time.monotonic()
        for path in ("/", "/label/", "/static/label.js", "/login"):
            assert httpx.get(address + path, cookies=cookie, timeout=10).status_code in (200, 303)
        assert time.monotonic() - started < 4
        time.sleep(6)
    answers = [one.result() for one in pressed]
    statuses = [status for status, _, _ in answers]
    assert statuses.count(503) >= 100 and statuses.count(200) == 120 - statuses.count(503) > 0
    assert {after for status, after, _ in answers if status == 503} == {"1"}


# ---- Streams ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["disable", "password", "sign out"])
def test_a_stream_that_is_open_ends_with_the_session(
    served: tuple[str, Any], end: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ui.people.guard.CHECK_S", 0.1)
    address, app = served
    people: People = app.state.people
    account = next(row.account_id for row in people.accounts() if row.name == "Root")
    cookie = people.open_session(account)
    with httpx.Client(base_url=address, cookies={COOKIE: cookie}, timeout=20) as client:
        with client.stream("GET", "/compare/gradio_api/heartbeat/mine") as stream:
            assert stream.status_code == 200
            chunks = stream.iter_raw()
            assert next(chunks)
            capfd.readouterr()
            began = time.monotonic()
            if end == "disable":
                people.disable("Root")
            elif end == "password":
                people.set_password("Root", "another good password")
            else:
                people.close_session(cookie)
            list(chunks)  # until it ends
            assert time.monotonic() - began < 5
        assert client.get("/compare/").status_code == 401
    assert "".join(capfd.readouterr()) == ""


# ---- What the pages load ----------------------------------------------------------------------------------------


@pytest.mark.browser
def test_every_page_works_with_the_routes_that_are_named_alone(served: tuple[str, Any], context: Any) -> None:
    address, app = served
    for name, paths in (("Root", ("/label", "/compare/", "/admin/", "/run")), ("Ann", ("/label", "/"))):
        row = next(row for row in app.state.people.accounts() if row.name == name)
        context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(row.account_id), "url": address}])
        for path in paths:
            page = context.new_page()
            odd: list[str] = []
            loaded: list[Any] = []
            page.on("console", lambda message, odd=odd: message.type == "error" and odd.append(message.text))
            page.on("pageerror", lambda error, odd=odd: odd.append(str(error)))
            page.on("response", lambda response, loaded=loaded: loaded.append(response))
            page.goto(address + path)
            shown = {"/label": ".tu-label[data-state=ready]", "/compare/": "text=Verdict", "/admin/": "text=Agreement"}
            page.wait_for_selector(shown.get(path, "h1"))
            page.wait_for_timeout(1500)
            assert (odd, [r.url for r in loaded if r.status >= 400]) == ([], []), (name, path)
            assert all(r.url.startswith(address) for r in loaded), "nothing is loaded from elsewhere"
            page.close()
