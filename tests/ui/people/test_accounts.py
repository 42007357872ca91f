"""Accounts, passwords, sessions, invitations, and what the pages around them say."""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import looping
import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from ui.app import run_app
from ui.labels.tables import Database, invite, session
from ui.people import accounts, passwords
from ui.people.accounts import COOKIE, DEVICE_COOKIE, LOCAL, SESSION_S, People, Person
from ui.people.names import AccountError, checked_name, skeleton
from ui.people.passwords import hash_password
from ui.people.passwords import password_matches as matches
from ui.people.throttle import MAX_KEYS, Attempts, Throttle, Throttled

PASSWORD = "four words are enough"
COST = passwords._LOG2_N
URL = "http://127.0.0.1:7860"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts are made for every test; those about hashes set the real cost again."""
    monkeypatch.setattr(passwords, "_LOG2_N", 4)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run with nothing in it but an empty label store."""
    (tmp_path / "run" / "labels").mkdir(parents=True)
    Database(f"sqlite:///{tmp_path}/run/labels/labels.sqlite").close()
    return tmp_path / "run"


@pytest.fixture
def start(run_dir: Path) -> Iterator[Callable[..., TestClient]]:
    """Start the application over the run, as often as asked for: a browser with no cookies."""
    apps = []

    def go(url: str = URL, **options: Any) -> TestClient:
        apps.append(run_app(run_dir, **options))
        return TestClient(apps[-1], base_url=url, follow_redirects=False, headers={"Accept": "text/html"})

    yield go
    for app in apps:
        app.state.people.store.close()


@pytest.fixture
def people(run_dir: Path) -> Iterator[People]:
    store = Database(f"sqlite:///{run_dir}/labels/labels.sqlite")
    yield People(store)
    store.close()


def id_of(people: People, name: str) -> int:
    return next(row.account_id for row in people.accounts() if row.name == name)


def said(answer: Any) -> str:
    """The text of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", answer.text.partition("<main")[2]).split())


# ---- Passwords --------------------------------------------------------------------------------------------------


def test_a_password_is_stored_as_scrypt_with_32_mib_and_its_own_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_LOG2_N", COST)
    one, two = hash_password(PASSWORD), hash_password(PASSWORD)
    scheme, log2_n, r, p, _, _ = one.split("$")
    assert scheme == "scrypt" and 128 * int(r) * 2 ** int(log2_n) >= 32 * 2**20 and int(p) >= 1
    assert one != two and PASSWORD not in one
    assert matches(PASSWORD, one) and matches(PASSWORD, two) and not matches(PASSWORD + " ", one)


def test_the_same_password_from_another_keyboard_is_the_same() -> None:
    composed, decomposed = "caf\u00e9 caf\u00e9 caf\u00e9", "cafe\u0301 cafe\u0301 cafe\u0301"
    assert matches(decomposed, hash_password(composed))


@pytest.mark.parametrize("name, password", [("", PASSWORD), ("a\nb", PASSWORD), ("x" * 65, PASSWORD), ("Ann", "short")])
def test_a_bad_name_or_password_makes_no_account(people: People, name: str, password: str) -> None:
    with pytest.raises(AccountError, match=r"a (name|password) has"):
        people.add(name, "annotator", password)
    assert people.accounts() == []


def test_a_name_is_taken_however_it_is_cased(people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    with pytest.raises(AccountError, match="taken"):
        people.add("ANN ", "admin", PASSWORD)
    assert people.who(people.log_in("ann", PASSWORD, "1.2.3.4").session) is not None


LIKE_ANN = """ANN|\u0020Ann\u0020|\uff21nn|\u0410nn|\u0410\u043f\u043f|A\u200bnn|An\u00adn|Ann\u034f|Ann\ufe0f|Ann\u3164
Ann.|A-n-n|A nn|\u00c1nn|A\u0301nn|Ann\u2800|Ann\u202e|\u0391nn|Ann\u0308
Ann\u00a0|\U0001d400nn""".replace("\n", "|").split("|")


@pytest.mark.parametrize("other", LIKE_ANN)
def test_a_name_that_looks_like_one_that_is_taken_is_refused(people: People, other: str) -> None:
    people.add("Ann", "annotator", PASSWORD)
    with pytest.raises(AccountError):
        people.add(other, "admin", PASSWORD)
    assert len(people.accounts()) == 1


ALIKE = """Bill Bi11 Bill BIll Oscar 0scar Amold Arnold Tom T0rn
cop \u0441\u043e\u0440 Max \u041c\u0430\u0445 van \u03bd\u03b1n NAN \u039d\u0391\u039d""".split()


@pytest.mark.parametrize(("one", "other"), list(zip(ALIKE[::2], ALIKE[1::2], strict=True)))
def test_two_names_that_look_alike_have_one_skeleton(one: str, other: str) -> None:
    assert skeleton(one) == skeleton(other)


NAMES = """Ann|Ann Lee|Ren\u00e9e O'Neill-Smith|ann@example.org
\u041d\u0438\u043d\u0430|\u4e2d\u6751|\u0e2a\u0e21\u0e0a\u0e32\u0e22|\u05d3\u05d5\u05d3
\u0645\u062d\u0645\u062f
\u5c71\u7530 Taro|\u0391\u03bd\u03bd\u03b1|user_7|\u0928\u0947\u0939\u093e""".replace("\n", "|").split("|")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_every_script_are_names(people: People, name: str) -> None:
    assert people.add(name, "annotator", PASSWORD).name == name == checked_name(name)
    assert people.log_in(name.upper(), PASSWORD, None)


def test_a_name_is_normalised_once_and_found_by_an_index(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        people.add(f"annotator {number:02}", "annotator", PASSWORD)
    calls: list[str] = []

    def folded(name: str) -> str:
        calls.append(name)
        return name.casefold()

    monkeypatch.setattr(accounts, "folded", folded)
    people.log_in("Annotator 07", PASSWORD, None)
    assert calls == ["Annotator 07"]
    with people.store.read() as db:
        plan = str(db.execute(sa.text("EXPLAIN QUERY PLAN SELECT * FROM account WHERE folded = 'x'")).all())
    assert "USING INDEX" in plan


def test_pseudonyms_are_random_and_say_nothing_of_the_name(people: People, tmp_path: Path) -> None:
    other = People(Database(f"sqlite:///{tmp_path}/other.sqlite"))
    one, two = people.add("Ann", "annotator", PASSWORD), other.add("Ann", "annotator", PASSWORD)
    assert one.pseudonym != two.pseudonym
    assert re.fullmatch(r"annotator-[0-9a-f]{6}", one.pseudonym) and re.fullmatch(r"annotator-\w{6}", two.pseudonym)
    other.store.close()


# ---- Signing in -------------------------------------------------------------------------------------------------


def test_signing_in_leads_to_the_page_that_was_asked_for(start: Any, people: People) -> None:
    people.add("Ann", "admin", PASSWORD)
    browser = start()
    sent_on = browser.get("/people?x=1")
    assert (sent_on.status_code, sent_on.headers["location"]) == (303, "/login?next=/people%3Fx%3D1")
    form = browser.get(sent_on.headers["location"])
    assert form.status_code == 200 and 'name="next" value="/people?x=1"' in form.text
    answer = browser.post("/login", data={"name": "Ann", "password": PASSWORD, "next": "/people?x=1"})
    assert (answer.status_code, answer.headers["location"]) == (303, "/people?x=1")
    assert browser.get("/people").status_code == 200
    assert browser.get("/login").headers["location"] == "/", "who is signed in needs no form"


@pytest.mark.parametrize("onward", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:x", ""])
def test_the_login_leads_nowhere_else(start: Any, people: People, onward: str) -> None:
    people.add("Ann", "annotator", PASSWORD)
    answer = start().post("/login", data={"name": "Ann", "password": PASSWORD, "next": onward})
    assert answer.headers["location"] == "/"


def test_a_wrong_password_an_unknown_name_and_a_disabled_account_are_told_apart_by_nothing(
    start: Any, people: People
) -> None:
    for name in ("Ann", "Bob"):
        people.add(name, "annotator", PASSWORD)
    people.disable("Bob")
    browser = start()
    tries = [("Ann", "wrong password"), ("Zoe", PASSWORD), ("Bob", PASSWORD), ("Ann", ""), ("", "")]
    answers = [browser.post("/login", data={"name": name, "password": password}) for name, password in tries]
    texts = {
        answer.text.replace(f'value="{name}"', 'value=""') for answer, (name, _) in zip(answers, tries, strict=True)
    }
    assert len(texts) == 1 and {answer.status_code for answer in answers} == {401}
    assert "That name and password do not belong together." in said(answers[0])
    assert {frozenset(answer.headers) for answer in answers} == {frozenset(answers[0].headers)}


def test_an_unknown_name_costs_as_much_hashing_as_a_known_one(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "_LOG2_N", COST)
    asked: list[tuple[int, int, int]] = []
    real = hashlib.scrypt

    def scrypt(*args: Any, **keys: Any) -> bytes:
        asked.append((keys["n"], keys["r"], keys["p"]))
        return real(*args, **keys)

    monkeypatch.setattr("hashlib.scrypt", scrypt)
    people.add("Ann", "annotator", PASSWORD)
    for name in ("Ann", "Zoe"):
        with pytest.raises(AccountError):
            people.log_in(name, "wrong password", "1.2.3.4")
    assert len(asked) == 3 and len(set(asked)) == 1


def test_the_cookie_cannot_be_read_by_scripts_nor_sent_by_other_sites(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    browser = start()
    flags = browser.post("/login", data={"name": "Ann", "password": PASSWORD}).headers["set-cookie"].lower()
    assert "httponly" in flags and "samesite=lax" in flags and "path=/" in flags and "secure" not in flags
    flags = start("https://127.0.0.1").post("/login", data={"name": "Ann", "password": PASSWORD}).headers["set-cookie"]
    assert "; Secure" in flags
    proxied = start(url="https://127.0.0.1")  # TLS ends at a proxy, which names the page in Origin alone
    flags = proxied.post(
        "/login", data={"name": "Ann", "password": PASSWORD}, headers={"Origin": "https://127.0.0.1"}
    ).headers["set-cookie"]
    assert "; Secure" in flags


def test_only_the_hash_of_a_session_or_an_invitation_is_stored(people: People, run_dir: Path) -> None:
    secrets = [people.open_session(None), people.invite("annotator"), people.link_token()]
    people.store.close()
    stored = b"".join(path.read_bytes() for path in (run_dir / "labels").iterdir())
    assert not any(secret.encode() in stored for secret in secrets)


# ---- Throttle ---------------------------------------------------------------------------------------------------


def test_failures_wait_twice_as_long_each_time_and_not_for_ever() -> None:
    now = 0.0
    throttle = Throttle(free=3, longest_s=60, clock=lambda: now)
    waits = []
    for _ in range(12):
        while wait := throttle.wait("ann"):
            now += wait
            waits.append(wait)
        throttle.count("ann")
    assert waits[:6] == [1, 2, 4, 8, 16, 32] and set(waits[6:]) == {60}
    assert throttle.wait("bob") == 0
    now += 121
    for _ in range(2):
        assert throttle.wait("ann") == 0, "after a quiet while it is forgotten"
        throttle.count("ann")


def test_many_guesses_at_once_are_not_all_free() -> None:
    attempts = Attempts(clock=lambda: 0.0)
    assert [tries(attempts, "ann", "10.0.0.1") for _ in range(8)] == [True] * 5 + [False] * 3


def test_what_strangers_send_is_kept_as_short_hashes_and_not_without_end() -> None:
    now = 0.0
    throttle = Throttle(free=1, clock=lambda: now)
    throttle.count("victim")
    throttle.count("victim")
    for number in range(MAX_KEYS + 500):
        throttle.count(f"{number}" * 100)
    assert len(throttle) <= MAX_KEYS and {len(key) for key in throttle._failures} == {16}
    assert throttle.wait("victim") > 0, "a flood of names opens no lock"


def tries(attempts: Attempts, name: str, address: str | None = None, device: str | None = None) -> bool:
    """Make a wrong guess. False: it was not even looked at."""
    try:
        attempts.begin(name, address, device)
    except Throttled:
        return False
    return True


OFFICE, ELSEWHERE = "192.0.2.1", "198.51.100.7"


def test_who_is_blocked_at_the_address_does_not_keep_a_name_closed() -> None:
    now = 0.0
    attempts = Attempts(clock=lambda: now)
    while tries(attempts, f"someone {now}", ELSEWHERE):  # the address is used up, by other names
        now += 0.001
    for _ in range(500):
        now += 0.001
        assert not tries(attempts, "ann", ELSEWHERE)
    assert attempts.by_name.wait("ann") == 0 and tries(attempts, "ann", OFFICE)


def test_one_guess_a_second_keeps_nobody_out_for_ever() -> None:
    now = 0.0
    attempts, looked_at, free = Attempts(clock=lambda: now), 0, 0
    for second in range(6 * 3600):
        now = float(second)
        looked_at += tries(attempts, "ann", ELSEWHERE)
        free += attempts.by_name.wait("ann") == 0
    assert looked_at < 60
    assert tries(attempts, "ann", OFFICE, "her browser"), "a browser that was in before is never stopped by it"


def test_a_closed_name_does_not_use_up_the_address_of_an_office() -> None:
    attempts = Attempts(clock=lambda: 0.0)
    while tries(attempts, "ann", ELSEWHERE):
        pass
    for _ in range(100):
        assert not tries(attempts, "ann", OFFICE)
    assert attempts.by_address.wait(OFFICE) == 0 and tries(attempts, "bob", OFFICE)


def test_a_known_browser_is_counted_by_itself_and_does_not_guess_for_ever() -> None:
    attempts = Attempts(clock=lambda: 0.0)
    while tries(attempts, "ann", OFFICE):
        pass
    guesses = [tries(attempts, "ann", OFFICE, "stolen laptop") for _ in range(20)]
    assert guesses == [True] * 5 + [False] * 15
    assert attempts.by_address.wait(OFFICE) == 0
    attempts.succeeded("ann", OFFICE, "stolen laptop")
    assert not tries(attempts, "ann", OFFICE), "success of a known browser gives strangers no new guesses"


def test_a_browser_that_was_in_before_gets_in_though_its_name_is_guessed_at(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    hers, theirs, stranger = start(), start(), start()
    attempts = Attempts(clock=lambda: 1000.0)
    for browser in (hers, theirs, stranger):
        browser.app.state.people.attempts = attempts
    right, wrong = {"name": "Ann", "password": PASSWORD}, {"name": "Ann", "password": "a wrong guess"}
    assert hers.post("/login", data=right).status_code == 303
    assert "path=/login" in hers.post("/login", data=right).headers.get_list("set-cookie")[1].lower()
    hers.post("/logout")
    for _ in range(12):
        theirs.post("/login", data=wrong)
    assert theirs.post("/login", data=right).status_code == 429
    stranger.cookies.set(DEVICE_COOKIE, "made.up~signature.x~y")
    assert stranger.post("/login", data=right).status_code == 429
    assert hers.post("/login", data=right).status_code == 303
    people.set_password("Ann", "another good password")  # the cookie proves that the old one was known
    assert hers.post("/login", data={**right, "password": "another good password"}).status_code == 429


def test_guesses_at_one_name_are_throttled_from_any_address_and_say_when_to_come_back(
    start: Any, people: People
) -> None:
    people.add("Ann", "annotator", PASSWORD)
    people.add("Bob", "annotator", PASSWORD)
    browser = start()
    throttle = browser.app.state.people.attempts.by_name
    throttle.clock = lambda: 1000.0
    for number in range(throttle.free):
        with pytest.raises(AccountError):
            browser.app.state.people.log_in("Ann", "a wrong guess", f"10.0.0.{number}")
    answer = browser.post("/login", data={"name": "ANN", "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) == 2
    assert "Too many failed attempts; try again in 2 seconds." in said(answer)
    assert browser.post("/login", data={"name": "Bob", "password": PASSWORD}).status_code == 303
    throttle.clock = lambda: 1002.0
    assert browser.post("/login", data={"name": "Ann", "password": PASSWORD}).status_code == 303


def test_guesses_from_one_address_at_many_names_are_throttled_unknown_ones_too(people: People) -> None:
    people.attempts = Attempts(clock=lambda: 0.0)
    people.attempts.by_address.free = 3
    for name in ("a", "b", "c"):
        with pytest.raises(AccountError):
            people.log_in(name, "wrong", "10.0.0.1")
    with pytest.raises(Throttled):
        people.log_in("d", "wrong", "10.0.0.1")
    with pytest.raises(AccountError):
        people.log_in("d", "wrong", "10.0.0.2")


def test_a_burst_of_logins_hashes_two_at_a_time_and_is_turned_away_when_the_queue_is_long(people: People) -> None:
    import asyncio

    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1

    async def burst() -> list[Any]:
        return await asyncio.gather(*(people.hashing(work) for _ in range(60)), return_exceptions=True)

    answers = looping.run(burst())
    assert most == 1
    assert [type(answer) for answer in answers].count(Throttled) == 10 and answers.count(None) == 50


def test_a_made_up_device_cookie_makes_no_browser_known(people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    people.add("Bob", "annotator", PASSWORD)
    ann = people.log_in("Ann", PASSWORD, None).device
    assert people.knows_browser("ann", f"other~x.{ann}")
    for name, devices in [("Ann", None), ("Ann", "x"), ("Ann", f"x{ann}"), ("Bob", ann), ("Eve", ann), ("", ann)]:
        assert not people.knows_browser(name, devices), (name, devices)
    assert not people.knows_browser("\u0301" * 50_000, ann)


def test_a_stranger_with_a_made_up_cookie_waits_with_the_strangers(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    hers, theirs = start(), start()
    data = {"name": "Ann", "password": PASSWORD}
    assert hers.post("/login", data=data).status_code == 303
    for browser in (hers, theirs):
        browser.app.state.people._queued[False] = accounts.QUEUE
    theirs.cookies.set(DEVICE_COOKIE, "made.up~signature")
    assert (theirs.post("/login", data=data).status_code, hers.post("/login", data=data).status_code) == (429, 303)


def test_known_browsers_do_not_wait_for_a_queue_of_strangers(people: People) -> None:
    import asyncio

    opened = threading.Event()

    async def race() -> None:
        strangers = [asyncio.ensure_future(people.hashing(opened.wait)) for _ in range(50)]
        await asyncio.sleep(0)
        with pytest.raises(Throttled):
            await people.hashing(lambda: None)
        assert await people.hashing(lambda: "in", known=True) == "in"
        opened.set()
        await asyncio.gather(*strangers)

    looping.run(race())


# ---- Sessions ---------------------------------------------------------------------------------------------------


def test_a_session_survives_a_restart_of_the_application(start: Any, people: People) -> None:
    people.add("Ann", "admin", PASSWORD)
    before = start()
    before.post("/login", data={"name": "Ann", "password": PASSWORD})
    before.app.state.people.store.close()
    after = start()
    after.cookies = before.cookies
    assert after.get("/people").status_code == 200


def test_a_session_ends_two_weeks_after_it_was_last_used(people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr("ui.people.accounts.time.time", lambda: now)
    used, unused = people.open_session(None), people.open_session(None)
    now += SESSION_S - 10
    assert people.who(used) == LOCAL
    now += 20
    assert people.who(used) == LOCAL and people.who(unused) is None
    now += SESSION_S + 1
    assert people.who(used) is None
    people.open_session(None)
    with people.store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(session)) == 1, "ended sessions are cleared away"


def test_a_session_or_invitation_that_has_ended_stays_so_when_the_clock_is_set_back(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    then = now = time.time()
    monkeypatch.setattr("ui.people.accounts.time.time", lambda: now)
    shown, unseen, invitation = people.open_session(None), people.open_session(None), people.invite("annotator", 1)
    now = then + SESSION_S + 1
    assert people.who(shown) is None
    now = then + 1
    assert people.who(shown) is None and people.who(unseen) is None and people.invited(invitation) is None
    fresh = people.open_session(None)
    now = then - 365 * 86_400
    assert people.who(fresh) == LOCAL
    now += SESSION_S + 1
    assert people.who(fresh) is None, "not a year longer"


@pytest.mark.parametrize("change", ["disable", "password"])
def test_no_session_is_opened_for_a_password_that_was_taken_away_while_it_was_checked(
    people: People, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    people.add("Ann", "annotator", PASSWORD)

    def slow(password: str, stored: str) -> bool:
        people.disable("Ann") if change == "disable" else people.set_password("Ann", "another good password")
        return matches(password, stored)

    monkeypatch.setattr(passwords, "password_matches", slow)
    with pytest.raises(AccountError):
        people.log_in("Ann", PASSWORD, None)
    with people.store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(session)) == 0


def test_people_change_their_own_password_and_are_out_everywhere_else(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    here, there = start(), start()
    for browser in (here, there):
        browser.post("/login", data={"name": "Ann", "password": PASSWORD})
    assert 'href="/password"' in here.get("/").text and here.get("/password").status_code == 200
    wrong = here.post("/password", data={"old": "not my password", "new": "another good password"})
    assert wrong.status_code == 422 and "not your current password" in said(wrong)
    short = here.post("/password", data={"old": PASSWORD, "new": "short"})
    assert short.status_code == 422 and "10 to 256 characters" in said(short) and there.get("/").status_code == 200
    assert here.post("/password", data={"old": PASSWORD, "new": "another good password"}).status_code == 303
    assert here.get("/").status_code == 200 and there.get("/").status_code == 303
    assert there.post("/login", data={"name": "Ann", "password": PASSWORD}).status_code == 401
    assert there.post("/login", data={"name": "Ann", "password": "another good password"}).status_code == 303
    guesses = [here.post("/password", data={"old": f"guess {n}", "new": PASSWORD}).status_code for n in range(8)]
    assert guesses == [303] + [303] * 7 or guesses[5:] == [429] * 3


def test_somebody_whose_name_is_local_has_a_password_like_anybody(start: Any, people: People) -> None:
    people.add("local", "annotator", PASSWORD)
    browser = start()
    browser.cookies.set(COOKIE, people.open_session(id_of(people, "local")))
    assert 'href="/password"' in browser.get("/").text and browser.get("/password").status_code == 200


def test_the_person_at_this_machine_has_no_password_to_change(start: Any) -> None:
    browser = start()
    browser.cookies.set(COOKIE, browser.app.state.people.open_session(None))
    assert "/password" not in browser.get("/").text and browser.get("/password").status_code == 404
    assert browser.post("/password", data={"old": PASSWORD, "new": PASSWORD}).status_code == 422


def test_signing_out_ends_the_session_on_the_server(start: Any, people: People) -> None:
    browser = start()
    cookie = browser.app.state.people.open_session(None)
    browser.cookies.set(COOKIE, cookie)
    answer = browser.post("/logout")
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert people.who(cookie) is None and browser.get("/").status_code == 401


def test_a_new_login_takes_the_place_of_the_session_before(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    browser = start()
    cookie = people.open_session(None)
    browser.cookies.set(COOKIE, cookie)
    browser.post("/login", data={"name": "Ann", "password": PASSWORD})
    assert people.who(cookie) is None


def test_two_campaigns_open_at_once_on_one_machine_do_not_sign_each_other_out(start: Any, tmp_path: Path) -> None:
    other = People(Database(f"sqlite:///{tmp_path}/other.sqlite"))  # on another port, whose cookies are the same ones
    elsewhere = other.open_session(None)
    browser = start()
    people = browser.app.state.people
    browser.cookies.set(COOKIE, elsewhere, domain="127.0.0.1")
    for _ in range(3):
        assert browser.get(f"/enter?token={people.link_token()}").status_code == 303
        cookie = browser.cookies[COOKIE]
        assert other.who(cookie) == LOCAL and people.who(cookie) == LOCAL and cookie.count(".") == 1
    browser.post("/logout")
    assert other.who(browser.cookies[COOKIE]) == LOCAL and people.who(cookie) is None
    other.store.close()


@pytest.mark.parametrize("change", ["disable", "password"])
def test_who_is_disabled_or_gets_a_new_password_is_out_at_once(start: Any, people: People, change: str) -> None:
    people.add("Ann", "admin", PASSWORD)
    browser = start()
    browser.post("/login", data={"name": "Ann", "password": PASSWORD})
    assert browser.get("/people").status_code == 200
    # By another process, as `trueup accounts` does it while the pages are served.
    people.disable("Ann") if change == "disable" else people.set_password("Ann", "another good password")
    assert browser.get("/people").status_code in (303, 401)
    people.enable("Ann")
    assert browser.get("/people").status_code == 303, "the old session stays ended"
    right = PASSWORD if change == "disable" else "another good password"
    assert browser.post("/login", data={"name": "Ann", "password": right}).status_code == 303


# ---- The link for the person at this machine --------------------------------------------------------------------


def test_the_printed_link_lets_one_browser_in_once(start: Any) -> None:
    browser, other = start(), start()
    other.app.state.people = browser.app.state.people
    token = browser.app.state.people.link_token()
    first = browser.get(f"/enter?token={token}")
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert "httponly" in first.headers["set-cookie"].lower()
    assert browser.app.state.people.who(browser.cookies[COOKIE]) == Person("local", "admin", "local")
    assert browser.get(f"/enter?token={token}").headers["location"] == "/", "opened again where it let in: go on"
    stranger = TestClient(browser.app, base_url=URL)
    again = stranger.get(f"/enter?token={token}")
    assert again.status_code == 401 and "used already" in said(again) and "set-cookie" not in again.headers
    assert stranger.get("/enter?token=made-up").status_code == 401 and stranger.get("/enter").status_code == 401


def test_without_accounts_a_page_says_to_open_the_link(start: Any) -> None:
    browser = start()
    for path in ("/", "/login", "/compare/", "/people", "/reports/sft"):
        answer = browser.get(path)
        assert answer.status_code == 401 and "Open the link that was printed" in said(answer), path
    assert browser.get("/", headers={"Accept": "application/json"}).json() == {"detail": "sign in first"}


# ---- Invitations ------------------------------------------------------------------------------------------------


def test_an_invitation_makes_one_account_of_its_role(start: Any, people: People) -> None:
    token = people.invite("annotator")
    browser = start()
    form = browser.get(f"/invite?token={token}")
    assert form.status_code == 200 and "You are invited" in said(form)
    answer = browser.post("/invite", data={"token": token, "name": "Ann", "password": PASSWORD})
    assert answer.status_code == 303 and [(row.name, row.role) for row in people.accounts()] == [("Ann", "annotator")]
    assert browser.get("/").status_code == 200 and browser.get("/people").status_code == 403
    assert browser.get(f"/invite?token={token}").status_code == 404
    again = browser.post("/invite", data={"token": token, "name": "Bob", "password": PASSWORD})
    assert again.status_code == 404 and "unknown, used or expired" in said(again) and len(people.accounts()) == 1


def test_an_invitation_used_by_two_at_the_same_moment_makes_one_account(people: People) -> None:
    token = people.invite("annotator")
    answers: list[Any] = []

    def accept(name: str) -> None:
        try:
            answers.append(people.accept(token, name, PASSWORD))
        except AccountError as error:
            answers.append(error)

    threads = [threading.Thread(target=accept, args=(name,)) for name in ("Ann", "Bob", "Cid")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(people.accounts()) == 1 and sum(isinstance(answer, AccountError) for answer in answers) == 2


def test_an_invitation_expires(people: People) -> None:
    token = people.invite("annotator", days=1)
    with people.store.write() as db:
        db.execute(invite.update().values(expires_at=time.time() - 1))
    assert people.invited(token) is None
    with pytest.raises(AccountError, match="expired"):
        people.accept(token, "Ann", PASSWORD)
    for days in (0, -1, 1e9, float("nan")):
        with pytest.raises(AccountError, match="365 days"):
            people.invite("annotator", days)


def test_open_invitations_are_listed_and_withdrawn(start: Any, people: People, run_dir: Path) -> None:
    people.add("Root", "admin", PASSWORD)
    tokens = [people.invite("annotator", days) for days in (3, 2, 1)] + [people.invite("admin", 4)]
    people.accept(tokens[0], "Ann", PASSWORD)
    listed = people.invitations()
    assert [one.role for one in listed] == ["annotator", "annotator", "admin"], "the next to expire first"
    assert not any(token in str(listed) for token in tokens)
    browser = start()
    browser.cookies.set(COOKIE, people.open_session(id_of(people, "Root")))
    assert all(one.id in browser.get("/people").text for one in listed)
    for status in (303, 404):
        assert browser.post(f"/people/withdraw/{listed[0].id}").status_code == status
    assert people.invited(tokens[2]) is None and people.invited(tokens[1]) == "annotator"
    people.withdraw(listed[1].id[:6])
    for unknown in ("", "%", "zz", listed[1].id):
        with pytest.raises(AccountError, match="open are"):
            people.withdraw(unknown)
    assert [one.role for one in people.invitations()] == ["admin"]
    assert [row.name for row in people.accounts()] == ["Root", "Ann"]


def test_a_bad_name_or_password_leaves_the_invitation_unused(start: Any, people: People) -> None:
    people.add("Ann", "annotator", PASSWORD)
    token = people.invite("admin")
    browser = start()
    for name, password, problem in (
        ("ann", PASSWORD, "is taken"),
        ("Bob", "short", "10 to 256 characters"),
        ("", PASSWORD, "A name has"),
    ):
        answer = browser.post("/invite", data={"token": token, "name": name, "password": password})
        assert answer.status_code == 422 and problem in said(answer) and password not in answer.text
    assert people.invited(token) == "admin" and len(people.accounts()) == 1


# ---- The list of people -----------------------------------------------------------------------------------------


def test_an_admin_invites_disables_and_enables_in_the_browser(start: Any, people: People) -> None:
    people.add("Root", "admin", PASSWORD)
    ann = people.add("<b>Ann</b>", "annotator", PASSWORD)
    browser = start()
    browser.cookies.set(COOKIE, people.open_session(id_of(people, "Root")))
    shown = browser.get("/people").text
    assert "&lt;b&gt;Ann&lt;/b&gt;" in shown and "<b>Ann" not in shown and ann.pseudonym in shown
    answer = browser.post("/people/invite", data={"role": "annotator", "days": "3"})
    link = re.search(r'value="http://127\.0\.0\.1:7860/invite\?token=([^"]+)"', answer.text)
    assert link and people.invited(link[1]) == "annotator"
    assert browser.post(f"/people/disable/{ann.pseudonym}").status_code == 303
    assert [row.active for row in people.accounts()] == [True, False]
    assert browser.post(f"/people/enable/{ann.pseudonym}").status_code == 303
    assert [row.active for row in people.accounts()] == [True, True]
    me = people.accounts()[0].pseudonym
    assert browser.post(f"/people/disable/{me}").status_code == 422 and people.accounts()[0].active
    assert browser.post("/people/delete/x").status_code == 404


def test_names_stay_in_the_account_table(people: People, run_dir: Path) -> None:
    people.add("Zacharias", "annotator", PASSWORD)
    people.open_session(id_of(people, "Zacharias"))
    db = sqlite3.connect(run_dir / "labels" / "labels.sqlite")
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    holding = [t for t in tables if any("Zacharias" in str(row) for row in db.execute(f'SELECT * FROM "{t}"'))]
    db.close()
    assert holding == ["account"]


# ---- In a browser -----------------------------------------------------------------------------------------------


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_pages_are_accessible_and_fit(
    start: Any, people: People, serve: Any, chromium: Any, width: int, scheme: str
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    people.add("Root", "admin", PASSWORD)
    people.add("Ann with a rather long name", "annotator", PASSWORD)
    context = chromium.new_context(viewport={"width": width, "height": 720}, color_scheme=scheme)
    url, page = serve(start().app), context.new_page()

    def fine() -> None:
        found = Axe().run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 242)"
        assert light == (scheme == "light")

    page.goto(f"{url}/invite?token={people.invite('annotator')}")
    fine()
    page.goto(f"{url}/people")
    fine()
    page.get_by_label("Name").fill("Root")
    page.get_by_label("Password").fill("a wrong password")
    page.keyboard.press("Enter")
    page.get_by_role("alert").wait_for()
    fine()
    page.keyboard.type(PASSWORD)  # the field that is to be corrected has the focus
    page.keyboard.press("Enter")
    page.wait_for_url(f"{url}/people")
    fine()
    page.get_by_role("button", name="Make a link").click()
    assert "/invite?token=" in page.get_by_label("Send this link").input_value()
    fine()
    page.get_by_role("button", name="Disable Ann").click()
    page.get_by_role("button", name="Enable Ann").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.wait_for_url(f"{url}/login")
    context.close()
