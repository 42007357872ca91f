"""Who may open and write what, under which names the server answers, and what it prints."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from trueup import runs
from trueup.errors import TrueupError
from ui.app import label_app, listen, run_app, serve_label, serve_run
from ui.labels.tables import Database
from ui.people import passwords
from ui.people.access import is_named, needs
from ui.people.accounts import COOKIE, People
from ui.people.guard import MAX_BODY, REPORT_POLICY
from ui.people.sites import address_of, site
from ui.people.throttle import Attempts

URL = "http://127.0.0.1:7860"
PASSWORD = "four words are enough"
OPEN = {"/login", "/invite", "/enter", "/favicon.ico"}


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts are made for every test here; what a hash costs is tested elsewhere."""
    monkeypatch.setattr("ui.people.passwords._LOG2_N", 4)
    monkeypatch.setattr("ui.people.passwords.NOBODY", passwords.hash_password("nobody's"))


@pytest.fixture
def app(compared: Any) -> Iterator[Any]:
    """A campaign with labels to give, a finished comparison, an admin Root and an annotator Ann."""
    made = label_app(compared.label())
    made.state.people.add("Root", "admin", PASSWORD)
    made.state.people.add("Ann", "annotator", PASSWORD)
    yield made
    made.state.people.store.close()


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    """A store with an admin, and nothing to serve."""
    made = People(Database(f"sqlite:///{tmp_path}/people.sqlite"))
    made.add("Root", "admin", PASSWORD)
    yield made
    made.store.close()


@pytest.fixture
def browser(app: Any) -> Callable[..., TestClient]:
    """`browser("Ann")` is signed in; without a name it is a stranger's."""

    def of(name: str | None = None, **options: Any) -> TestClient:
        people, client = app.state.people, TestClient(app, base_url=URL, follow_redirects=False, **options)
        if name is not None:
            row = next(row for row in people.accounts() if row.name == name)
            client.cookies.set(COOKIE, people.open_session(row.account_id))
        return client

    return of


def routes(app: Any, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Path and methods of every route, those of routers and mounted applications too."""
    for route in app.routes:
        if (inner := getattr(route, "original_router", None)) is not None:
            yield from routes(inner, prefix)
        elif hasattr(route, "methods"):
            yield prefix + re.sub(r"\{[^}]*\}", "x", route.path), set(route.methods or ())
        elif hasattr(route.app, "routes"):
            yield from routes(route.app, prefix + route.path)
        else:
            yield f"{prefix}{route.path}/x", {"GET"}


# ---- Every route ------------------------------------------------------------------------------------------------


def test_the_routes_are_found(app: Any) -> None:
    found = dict(routes(app))
    assert {"/login", "/api/v1/labels", "/people/invite", "/compare/gradio_api/run/x", "/label/config"} <= found.keys()
    assert len(found) > 100


def test_no_route_can_be_read_or_written_without_a_session(app: Any, browser: Any) -> None:
    stranger = browser()
    opened = []
    for path, methods in routes(app):
        for method in sorted(methods - {"HEAD", "OPTIONS"}):
            answer = stranger.request(method, path, json={} if method != "GET" else None)
            if (answer.status_code, answer.text) != (401, '{"detail": "sign in first"}'):
                opened.append(path)
    assert set(opened) == OPEN


def test_no_route_can_be_read_or_written_from_a_page_of_another_site(app: Any, browser: Any) -> None:
    admin = browser("Root")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:8888", "https://127.0.0.1:7860.evil.example"):
        let_through = [
            (method, path)
            for path, methods in routes(app)
            for method in methods - {"HEAD"}
            if admin.request(method, path, headers={"Origin": origin}).status_code != 403
        ]
        assert let_through == []
    for said in ("cross-site", "same-site"):
        let_through = [
            (method, path)
            for path, methods in routes(app)
            for method in methods - {"GET", "HEAD", "OPTIONS"}
            if admin.request(method, path, headers={"Sec-Fetch-Site": said}).status_code != 403
        ]
        assert let_through == []


def test_a_web_socket_is_refused_like_any_write(browser: Any) -> None:
    from starlette.websockets import WebSocketDisconnect

    for client, headers in ((browser(), {}), (browser("Root"), {"Origin": "https://evil.example"})):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect("/api/v1/live", headers=headers):
            pass


def test_an_annotator_reaches_the_labelling_page_and_its_api_alone(app: Any, browser: Any) -> None:
    annotator = browser("Ann")
    reached = set()
    for path, methods in routes(app):
        for method in methods - {"HEAD", "OPTIONS"}:
            if path == "/logout" or path in OPEN or "/gradio_api/heartbeat" in path:
                continue  # a stream that never ends
            if annotator.request(method, path, json={} if method != "GET" else None).status_code not in (401, 403):
                reached.add((method, path.split("/")[1]))
    ways = {"GET": ("", "label", "static", "api", "password"), "POST": ("api", "password")}
    assert reached == {(method, top) for method, tops in ways.items() for top in tops}
    for path in ("/compare/", "/people", "/reports/sft", "/api/v1/admin/anything", "/admin", "/not/thought/of"):
        assert annotator.get(path).status_code == 403, path
    assert "for admins" in annotator.get("/compare/", headers={"Accept": "text/html"}).text


def test_a_path_is_closed_unless_it_was_opened_by_name() -> None:
    for path in ("/whatever", "/labels", "/label2", "/api/v1/admin", "/api/v1/admin/x", "/api", "//label", "/Label"):
        assert needs(path) == "admin", path
    assert needs("/api/v1/labels") == needs("/label/") == "annotator" and needs("/login") == "nobody"


# ---- Gradio's own routes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["/compare", "/admin"])
def test_a_raw_post_to_gradio_gives_an_annotator_nothing(app: Any, browser: Any, mount: str) -> None:
    stranger, annotator, admin = browser(), browser("Ann"), browser("Root")
    body = {"data": [], "fn_index": 0, "session_hash": "mine"}
    for path in ("run/predict", "run/look", "call/look", "api/predict", "queue/join", "component_server"):
        assert stranger.post(f"{mount}/gradio_api/{path}", json=body).status_code == 401
        assert annotator.post(f"{mount}/gradio_api/{path}", json=body).status_code == 403
    for path in ("config", "", "gradio_api/info", "gradio_api/queue/data?session_hash=mine"):
        assert stranger.get(f"{mount}/{path}").status_code == 401
        assert annotator.get(f"{mount}/{path}").status_code == 403
    if mount == "/compare":
        answer = admin.post(f"{mount}/gradio_api/run/predict", json=body)
        assert answer.status_code == 200 and "Verdict" in answer.text, "so the refusals above mean something"


def test_the_statistics_are_for_admins(app: Any, browser: Any) -> None:
    for path in ("summary", "summary.html", "table.csv?what=annotators", "events"):
        statuses = [browser(name).get(f"/api/v1/admin/{path}").status_code for name in (None, "Ann", "Root")]
        assert statuses == [401, 403, 200], path
    assert browser("Root").get("/admin/").status_code == 200


def test_gradio_serves_no_file_and_takes_none_from_an_annotator(app: Any, browser: Any, compared: Any) -> None:
    annotator = browser("Ann")
    for path in (compared.dir / "labels/labels.sqlite", Path("/etc/hostname"), Path("pyproject.toml")):
        assert annotator.get(f"/label/gradio_api/file={path}").status_code in (403, 404)
    assert annotator.post("/label/gradio_api/upload", files={"files": b"x"}).status_code == 403


def test_what_the_browser_gets_before_it_asks_holds_nothing_of_the_campaign(
    app: Any, browser: Any, secret: str
) -> None:
    annotator = browser("Ann")
    for path in ("/label/", "/label/config", "/", "/api/v1/openapi.json"):
        text = annotator.get(path, headers={"Accept": "text/html"}, follow_redirects=True).text
        assert secret not in text and "loaf" not in text and str(app.state.people.store.url) not in text, path


LOADED = {"", "/", "/theme.css", "/assets/x", "/gradio_api/heartbeat/x"}
"""What a page asks Gradio for; tests/ui/people/test_strangers.py watches a real browser do it."""


def test_of_gradios_routes_those_that_a_page_loads_are_there_by_name_and_no_others(app: Any, browser: Any) -> None:
    for mount in ("/label", "/compare", "/admin"):
        unnamed(app, mount, [browser("Ann"), browser("Root")] if mount == "/label" else [browser("Root")])


def unnamed(app: Any, mount: str, signed_in: list[Any]) -> None:
    below = {(path.removeprefix(mount), m) for path, methods in routes(app) if path.startswith(mount) for m in methods}
    assert len(below) > 60 and {("/gradio_api/file=x", "GET"), ("/gradio_api/upload", "POST")} <= below
    allowed = {(path, method) for path, method in below if is_named(method, mount + path)}
    assert allowed == {(path, method) for path, method in below if path in LOADED and method in ("GET", "HEAD")}
    assert is_named("GET", f"{mount}/static/js/iframeResizer.contentWindow.min.js")
    assert is_named("POST", f"{mount}/gradio_api/run/predict") == (mount != "/label")
    for client in signed_in:
        for path, method in sorted(below - allowed):
            assert client.request(method, mount + path).status_code in (403, 404), (method, path)


UNNAMED = [
    "gradio_api/file=http://127.0.0.1:1/x",
    "gradio_api/file=/etc/hostname",
    "gradio_api/proxy=http://127.0.0.1:1/x",
    "gradio_api/info",
    "gradio_api/queue/data?session_hash=x",
    "gradio_api/heartbeat/../file=/etc/hostname",
    "gradio_api/heartbeat/%2e%2e/file=/etc/hostname",
    "assets/../gradio_api/info",
    "assets/http://127.0.0.1:1/x",
    "assets/.env",
    "svelte/x",
    "static/x",
    "monitoring",
    "config",
    "config/",
    "theme.css/",
    "openapi.json",
    "docs",
]


def test_no_way_of_writing_it_reaches_a_route_that_is_not_named(browser: Any) -> None:
    for client, mount in ((browser("Ann"), "/label"), (browser("Root"), "/label"), (browser("Root"), "/compare")):
        for below in UNNAMED:
            assert client.get(f"{mount}/{below}").status_code in (403, 404), (mount, below)


# ---- Labelling under a pseudonym --------------------------------------------------------------------------------


def test_what_an_annotator_labels_is_stored_under_the_pseudonym(app: Any, browser: Any) -> None:
    import sqlalchemy as sa

    from ui.labels.tables import event

    annotator = browser("Ann")
    token = annotator.get("/api/v1/tasks").json()["tasks"][0]["token"]
    press = {"client_uuid": "12345678", "token": token, "choice": "a"}
    assert annotator.post("/api/v1/labels", json=press, headers={"Origin": URL}).status_code == 200
    with app.state.people.store.read() as db:
        (name,) = db.scalars(sa.select(event.c.annotator))
    assert name == next(row.pseudonym for row in app.state.people.accounts() if row.name == "Ann")


def test_labelling_ends_at_once_for_who_is_disabled(app: Any, browser: Any) -> None:
    annotator = browser("Ann")
    assert annotator.get("/api/v1/tasks").status_code == 200
    app.state.people.disable("Ann")
    assert annotator.get("/api/v1/tasks").status_code == 401
    assert annotator.get("/label/config").status_code == 401


# ---- Names of the server ----------------------------------------------------------------------------------------


def test_a_name_that_is_not_the_servers_is_refused(browser: Any) -> None:
    admin = browser("Root")
    for host in ("evil.example:7860", "127.0.0.1.evil.example", "", "192.168.1.20:7860", "[::1"):
        assert admin.get("/api/v1/tasks", headers={"Host": host}).status_code == 403, host
        assert admin.get("/login", headers={"Host": host}).status_code == 403, host
    for host in ("localhost:7860", "127.0.0.1:9999", "[::1]:7860"):
        assert admin.get("/login", headers={"Host": host}).status_code == 303, host


def test_a_forwarded_port_is_this_site_and_another_port_is_not(browser: Any) -> None:
    admin = browser("Root")
    for host, origin, status in (
        ("localhost:9000", "http://localhost:9000", 200),
        ("127.0.0.1:7860", "http://127.0.0.1:7860", 200),
        ("127.0.0.1:7860", "http://127.0.0.1:9000", 403),
        ("127.0.0.1:7860", "http://localhost:7860", 403),
    ):
        answer = admin.post("/api/v1/heartbeat", headers={"Host": host, "Origin": origin})
        assert answer.status_code == status, (host, origin)


def test_behind_a_proxy_the_name_that_people_open_is_the_servers(app: Any, browser: Any) -> None:
    where = site("127.0.0.1", "https://Label.example.org/", app.state.people)
    assert where.knows("label.example.org") and where.knows("127.0.0.1:7860") and not where.knows("192.168.1.20")
    assert where.is_own("https://label.example.org", "127.0.0.1:7860"), "a proxy that renames the host"
    assert where.is_own("https://label.example.org", "label.example.org")
    assert not where.is_own("https://example.org", "127.0.0.1:7860")


ORIGIN = ("https", "label.example.org", 443)


@pytest.mark.parametrize(
    ("url", "same"),
    [
        ("https://label.example.org", ORIGIN),
        ("https://label.example.org:443", ORIGIN),
        ("https://label.example.org:443/", ORIGIN),
        ("HTTPS://Label.Example.ORG/", ORIGIN),
        ("https://label.example.org.", ORIGIN),
        ("https://label.example.org:8443", ("https", "label.example.org", 8443)),
        ("http://label.example.org:80", ("http", "label.example.org", 80)),
        ("http://label.example.org:443", ("http", "label.example.org", 443)),
        ("https://m\u00fcnchen.example", ("https", "xn--mnchen-3ya.example", 443)),
        ("https://xn--MNCHEN-3ya.example:443", ("https", "xn--mnchen-3ya.example", 443)),
        ("https://[2001:DB8:0:0::1]:443/", ("https", "2001:db8::1", 443)),
        ("http://[::1]:7860", ("http", "::1", 7860)),
        ("http://192.0.2.7:80", ("http", "192.0.2.7", 80)),
    ],
)
def test_an_origin_is_one_however_it_is_written(people: People, url: str, same: tuple[str, str, int]) -> None:
    where = site("127.0.0.1", url, people)
    assert where.origin == same
    sent = str(where.origin)  # as a browser writes it
    host = sent.partition("//")[2]
    assert where.knows(host) and where.knows(host.upper()) and where.is_own(sent, host)
    assert where.is_own(sent, "127.0.0.1:7860"), "a proxy that renames the host"
    evil = "https://evil.example"
    for other in (evil, f"{sent}.evil.example", f"{sent}@evil.example", f"{sent}/", f"{sent}x", "null", ""):
        assert not where.is_own(other, host), other


def test_behind_a_proxy_that_says_the_schemes_own_port_people_sign_in(compared: Any) -> None:
    store = Database(compared.label().store_url)
    People(store).add("Ann", "annotator", PASSWORD)
    store.close()
    made = label_app(compared.label(), url="https://Label.example.org:443/")
    for host in ("label.example.org", "label.example.org:443", "127.0.0.1:7860"):
        client = TestClient(made, base_url="http://127.0.0.1:7860", follow_redirects=False)
        said = {"Host": host, "Origin": "https://label.example.org", "Sec-Fetch-Site": "same-origin"}
        answer = client.post("/login", data={"name": "Ann", "password": PASSWORD}, headers=said)
        assert answer.status_code == 303 and "; Secure" in answer.headers["set-cookie"], host
    made.state.people.store.close()


# ---- From where -------------------------------------------------------------------------------------------------

URL_OF_PROXY, PROXY = "https://x.example", ("127.0.0.1", "10.0.0.0/8", "::1")


@pytest.mark.parametrize(
    ("peer", "forwarded", "url", "proxies", "address"),
    [
        ("203.0.113.5", "", None, (), "203.0.113.5"),
        ("203.0.113.5", "192.0.2.1", None, (), "203.0.113.5"),
        ("203.0.113.5", "192.0.2.1", URL_OF_PROXY, PROXY, "203.0.113.5"),  # not a proxy of ours: it says nothing
        ("192.168.1.7", "", None, (), "192.168.1.7"),
        ("::ffff:192.168.1.7", "", None, (), "192.168.1.7"),
        ("2001:db8:1:2:3::4", "", None, (), "2001:db8:1:2::/64"),
        ("127.0.0.1", "", None, (), None),
        ("127.0.0.1", "192.0.2.1", None, (), None),  # nobody said that a proxy is there: the header is anybody's
        ("::1", "192.0.2.1", URL_OF_PROXY, (), None),
        ("172.17.0.1", "192.0.2.1", URL_OF_PROXY, (), None),  # Docker's; its header is not believed unasked
        ("fd00::1", "", URL_OF_PROXY, (), None),
        ("127.0.0.1", "192.0.2.1", URL_OF_PROXY, PROXY, "192.0.2.1"),
        ("127.0.0.1", "forged, 198.51.100.1, 192.0.2.1", URL_OF_PROXY, PROXY, "192.0.2.1"),
        ("127.0.0.1", "192.0.2.1, 10.0.0.3, 127.0.0.1", URL_OF_PROXY, PROXY, "192.0.2.1"),
        ("::1", "192.0.2.1:5123", URL_OF_PROXY, PROXY, "192.0.2.1"),
        ("::1", "[2001:db8:1:2:3::4]:5123", URL_OF_PROXY, PROXY, "2001:db8:1:2::/64"),
        ("10.1.2.3", "", URL_OF_PROXY, PROXY, None),
        ("10.1.2.3", "10.0.0.1, 10.0.0.2", URL_OF_PROXY, PROXY, None),
        ("10.1.2.3", "192.0.2.1, unknown", URL_OF_PROXY, PROXY, None),
        ("10.1.2.3", "," * 10_000, URL_OF_PROXY, PROXY, None),
        ("testclient", "", None, (), None),
        (None, "", None, (), None),
    ],
)
def test_whose_failures_are_counted_together(
    people: People, peer: str | None, forwarded: str, url: str | None, proxies: tuple[str, ...], address: str | None
) -> None:
    assert address_of(peer, forwarded, site("0.0.0.0", url, people, proxies)) == address


def guesses(app: Any, number: int, name: str, added: str) -> list[int]:
    """So many wrong passwords through a proxy on this machine, each with a forged address before what it adds."""
    client = TestClient(app, base_url=URL, client=("127.0.0.1", 50_000))
    body = {"name": name, "password": "a wrong guess"}
    said = [", ".join(filter(None, (f"198.51.100.{n}", added))) for n in range(number)]
    return [client.post("/login", data=body, headers={"X-Forwarded-For": one}).status_code for one in said]


@pytest.mark.parametrize("proxies, added", [((), ""), ((), "203.0.113.9"), (("127.0.0.1",), "203.0.113.9")])
def test_a_forged_address_buys_no_guess_and_one_guesser_locks_nobody_else_out(
    compared: Any, proxies: tuple[str, ...], added: str
) -> None:
    store = Database(compared.label().store_url)
    for name in ("Ann", "Bob"):
        People(store).add(name, "annotator", PASSWORD)
    store.close()
    made = label_app(compared.label(), url="https://label.example.org", proxies=proxies)
    made.state.people.attempts = Attempts(clock=lambda: 0.0)
    assert guesses(made, 24, "Ann", added) == [401] * 5 + [429] * 19
    for number in range(40):
        guesses(made, 1, f"nobody {number}", added)
    stranger = TestClient(made, base_url=URL, client=("127.0.0.1", 50_000), follow_redirects=False)
    headers = {"X-Forwarded-For": "192.0.2.44"} if added else {}
    right = {"name": "Bob", "password": PASSWORD}
    assert stranger.post("/login", data=right, headers=headers).status_code == 303
    made.state.people.store.close()


def test_a_proxy_that_is_no_address_is_named(people: People) -> None:
    for proxy in ("nginx", "10.0.0.1/8", "300.1.1.1"):
        with pytest.raises(TrueupError, match=f"--proxy {proxy}: .*give the address"):
            site("127.0.0.1", None, people, (proxy,))


def test_bound_to_the_network_any_address_is_the_servers_and_no_other_name(app: Any) -> None:
    where = site("0.0.0.0", None, app.state.people)
    assert where.knows("192.168.1.20:7860") and where.knows("[fe80::1]:7860") and not where.knows("evil.example")
    assert site("box.lan", None, app.state.people).knows("BOX.lan:7860".lower())


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::", "example.org", ""])
def test_another_address_than_this_machines_is_refused_without_accounts(host: str, campaign: Any) -> None:
    with pytest.raises(TrueupError, match=r"(?s)--host .*no accounts.*trueup accounts add.*ssh -L"):
        serve_label(campaign.label(), host=host)
    with pytest.raises(TrueupError, match="no accounts"):
        serve_run(campaign.dir, host=host)


def test_a_public_url_is_refused_without_accounts_and_has_to_be_one(campaign: Any) -> None:
    with pytest.raises(TrueupError, match=r"--url label\.example\.org: there are no accounts"):
        serve_run(campaign.dir, url="https://label.example.org")
    for url in ("label.example.org", "ftp://x", "https://x/path", "https://"):
        with pytest.raises(TrueupError, match="give the scheme and host"):
            serve_run(campaign.dir, url=url)


def test_accounts_that_are_all_disabled_are_none(app: Any) -> None:
    for name in ("Root", "Ann"):
        app.state.people.disable(name)
    with pytest.raises(TrueupError, match="no accounts"):
        site("0.0.0.0", None, app.state.people)


def test_a_port_that_is_none_is_named() -> None:
    with pytest.raises(TrueupError, match="--port 99999: expected 0 to 65535"):
        listen("127.0.0.1", 99999)


def test_loopback_addresses_are_served_without_accounts(tmp_path: Path) -> None:
    store = Database(f"sqlite:///{tmp_path}/empty.sqlite")
    for host in ("127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"):
        assert not site(host, None, People(store)).any_address
    store.close()


# ---- Too much ---------------------------------------------------------------------------------------------------


def test_a_huge_body_is_refused_before_it_is_read(browser: Any) -> None:
    for path in ("/login", "/api/v1/labels"):
        assert browser("Ann").post(path, content=b"x" * (MAX_BODY + 1)).status_code == 413
        assert browser("Ann").post(path, content=iter([b"x"])).status_code == 413, "of unknown length"


def test_pages_carry_the_headers_that_keep_them_to_themselves(browser: Any) -> None:
    for client, path in (
        (browser(), "/login"),
        (browser("Root"), "/"),
        (browser("Root"), "/compare/"),
        (browser(), "/"),
    ):
        headers = client.get(path, headers={"Accept": "text/html"}).headers
        assert "frame-ancestors 'none'" in headers["content-security-policy"], path
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "same-origin"
    login = browser().get("/login").headers
    assert "default-src 'none'" in login["content-security-policy"] and login["cache-control"] == "no-store"


def test_scripts_are_asked_about_again_so_that_an_update_reaches_every_page(browser: Any) -> None:
    assert browser("Ann").get("/static/label.js").headers["cache-control"] == "no-cache"


# ---- A run ------------------------------------------------------------------------------------------------------


def test_a_run_is_shown_with_its_labels_once_the_stage_has_begun(compared: Any) -> None:
    def shown() -> tuple[str, int]:
        made = run_app(compared.dir)
        client = TestClient(made, base_url=URL)
        client.cookies.set(COOKIE, made.state.people.open_session(None))
        answers = client.get("/").text, client.get("/api/v1/tasks").status_code
        made.state.people.store.close()
        return answers

    page, status = shown()
    assert "/compare/" in page and 'href="/label"' not in page and status == 404
    config = compared.label(guideline="Be fair.")
    label_app(config).state.people.store.close()
    runs.begin(config)
    page, status = shown()
    assert "/compare/" in page and 'href="/label"' in page and status == 200


def test_a_label_config_that_cannot_be_read_is_named(compared: Any) -> None:
    path = compared.dir / "labels" / "config.yaml"
    path.parent.mkdir()
    path.write_text("label: {sourse: human}")
    with pytest.raises(TrueupError, match=r"labels/config\.yaml.*(?s:.*)label\.sourse"):
        run_app(compared.dir)


def test_a_run_without_a_store_is_left_as_it_is(compared: Any) -> None:
    before = sorted(compared.dir.rglob("*"))
    bare = run_app(compared.dir)
    client = TestClient(bare, base_url=URL)
    assert client.get("/compare/").status_code == 401
    client.cookies.set(COOKIE, bare.state.people.open_session(None))
    assert client.get("/compare/").status_code == 200
    bare.state.people.store.close()
    assert sorted(compared.dir.rglob("*")) == before


def test_annotators_are_not_told_the_name_of_the_run(app: Any, browser: Any, compared: Any) -> None:
    assert f"<h1>{compared.dir.name}</h1>" in browser("Root").get("/").text
    assert compared.dir.name not in re.sub(r"<style>.*?</style>", "", browser("Ann").get("/").text)


def test_an_address_that_leads_nowhere_is_a_page_for_people_and_json_for_programs(browser: Any) -> None:
    asking = browser("Root")
    for path in ("/nowhere", "/reports/nothing"):
        shown = asking.get(path, headers={"Accept": "text/html"})
        assert shown.status_code == 404 and "no such page" in shown.text and 'href="/"' in shown.text
        assert asking.get(path).json().keys() == {"detail"}


def test_a_report_is_shown_and_can_run_no_script_but_the_one_that_ships(app: Any, browser: Any, compared: Any) -> None:
    (compared.dir / "compare" / "report.html").write_text("<script>alert(1)</script>")
    admin = browser("Root")
    assert "/reports/compare" in admin.get("/").text
    answer = admin.get("/reports/compare")
    assert answer.status_code == 200 and answer.headers["content-security-policy"] == REPORT_POLICY
    assert admin.get("/reports/..%2f..%2fetc").status_code == 404
    assert admin.get("/reports/reward").status_code == 404


def test_the_page_on_what_a_stage_read_is_for_admins_and_runs_no_script(app: Any, browser: Any, compared: Any) -> None:
    for stage in ("candidates", "round-2/candidates"):
        (compared.dir / stage).mkdir(parents=True, exist_ok=True)
        (compared.dir / stage / "data.html").write_text(f"<script>alert(1)</script>{stage}")
    admin, annotator = browser("Root"), browser("Ann")
    assert "/reports/sample/data" in admin.get("/").text
    for address, folder in (("sample", "candidates"), ("round-2/sample", "round-2/candidates")):
        answer = admin.get(f"/reports/{address}/data")
        assert answer.status_code == 200 and answer.text.endswith(f">{folder}")
        assert answer.headers["content-security-policy"] == REPORT_POLICY
        assert annotator.get(f"/reports/{address}/data").status_code == 403
    for missing in ("align", "nothing", "..%2f..%2fetc"):
        assert admin.get(f"/reports/{missing}/data").status_code == 404


# ---- The command ------------------------------------------------------------------------------------------------


def test_starting_rewrites_no_stubs_of_the_installed_gradio() -> None:
    """It would cost every start a second. Fails when Gradio renames what writes them."""
    check = (
        "import ui.app, gradio; from gradio import component_meta as made; "
        "assert made.create_or_modify_pyi.__module__ == 'ui.pages.gradio_shell'; assert gradio.Textbox().change"
    )
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_the_web_application_needs_no_torch() -> None:
    check = "import sys, ui.app, ui.label.run; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


def test_labelling_before_sampling_says_what_to_run(tmp_path: Path, campaign: Any) -> None:
    with pytest.raises(TrueupError, match="trueup sample CONFIG"):
        label_app(campaign.label(run_dir=tmp_path / "elsewhere"))


def printed(process: Any) -> str:
    """The address in the first lines of a server, once it answers."""
    for line in process.stdout:
        if found := re.search(r"open (http://\S+)", line):
            return found[1]
    raise AssertionError(process.communicate())


def test_the_command_prints_one_link_that_opens_the_page(trueup: Any, compared: Any) -> None:
    import httpx

    process = trueup("serve", compared.dir, "--port", "0")
    link = printed(process)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/enter\?token=[\w-]{32}", link)
    with httpx.Client(follow_redirects=True) as client:
        answer = client.get(link)
        assert answer.status_code == 200 and "Comparison" in answer.text and answer.url.path == "/"
    assert httpx.get(link).status_code == 401
    process.terminate()


def test_a_session_goes_on_when_the_command_is_started_again(trueup: Any, campaign: Any) -> None:
    import httpx

    label_app(campaign.label()).state.people.store.close()  # makes the store
    cookies = None
    for _ in range(2):
        process = trueup("serve", campaign.dir, "--port", "0")
        link = printed(process)
        with httpx.Client(cookies=cookies, base_url=link.partition("/enter")[0]) as client:
            if cookies is None:
                assert client.get(link).status_code == 303
                cookies = {COOKIE: client.cookies[COOKIE]}
            assert client.get("/").status_code == 200
        process.kill()
        process.wait()
        time.sleep(0.1)


def test_answers_leave_at_once_and_wait_for_no_acknowledgement() -> None:
    """With Nagle's algorithm on, each would take 40 ms more."""

    async def connect() -> int:
        seen = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: seen.set_result(writer), sock=listen("127.0.0.1", 0))
        _, held_open = await asyncio.open_connection(*server.sockets[0].getsockname())
        option = (await seen).get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        held_open.close()
        server.close()
        return int(option)

    with ThreadPoolExecutor(1) as thread:  # an event loop of its own: Playwright's may be running in this thread
        assert thread.submit(asyncio.run, connect()).result() != 0
