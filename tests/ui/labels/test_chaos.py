"""Nothing is lost, doubled or collected too often: servers are killed, and everybody wants the same thing at once.

benchmarks/labelling.py runs the same with 100 kills and 10,000 races.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import chaos
from ui.labels.config import LabelConfig
from ui.people.accounts import COOKIE


@pytest.fixture
def asked(store_url: str, tmp_path: Path) -> Callable[..., LabelConfig]:
    """A campaign over either database, with so many pairs."""
    return lambda pairs, **label: chaos.campaign(tmp_path, pairs, store=store_url, **label)


def test_kill_9_among_concurrent_writers_loses_and_doubles_no_confirmed_label(
    asked: Callable[..., LabelConfig],
) -> None:
    killed = chaos.kill_rounds(asked(300, labels_per_pair=8), rounds=10, annotators=8)
    assert killed.problems == []
    assert killed.rounds == 10 and killed.acknowledged >= 80 and killed.resent > 0


def test_a_race_for_the_last_slot_never_collects_two_labels(store_url: str) -> None:
    raced = chaos.races(store_url, 100, processes=2, threads=3)
    assert raced.problems == []
    assert (raced.labels, raced.late) == (100, 50 * 5), "of six who answer at once, one counts and five are late"


@pytest.fixture
def two_servers(asked: Callable[..., LabelConfig]) -> Iterator[tuple[LabelConfig, list[str], dict[str, str]]]:
    """Two processes that serve one store, and the cookies of those who label."""
    config = asked(40)
    with ExitStack() as running:
        first = running.enter_context(chaos.serving(config))
        cookies = chaos.let_in(config.store_url, 2)
        yield config, [first, running.enter_context(chaos.serving(config))], cookies


def at_once(addresses: list[str], cookie: str, bodies: list[dict[str, Any]]) -> list[Any]:
    """Post each body to /labels, over a connection of its own to one of the servers, all in the same moment."""
    start = threading.Barrier(len(bodies))

    def post(number: int) -> Any:
        with chaos.signed_in(addresses[number % len(addresses)], cookie, timeout=60) as client:
            client.get("/api/v1/tasks")  # connected, and warm
            start.wait()
            return client.post("/api/v1/labels", json=bodies[number])

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(post, range(len(bodies))))


def test_a_storm_of_replays_at_two_servers_is_one_label_and_everybody_gets_the_stored_answer(
    two_servers: tuple[LabelConfig, list[str], dict[str, str]],
) -> None:
    config, addresses, cookies = two_servers
    wanted = Counter[chaos.Said]()
    with chaos.signed_in(addresses[0], cookies["ann-0"]) as client:
        for number in range(5):
            task = client.get("/api/v1/tasks").json()["tasks"][0]
            body = {"client_uuid": f"press-{number:04}", "token": task["token"], "choice": "b_much"}
            said = at_once(addresses, cookies["ann-0"], [body] * 12)
            assert [response.status_code for response in said] == [200] * 12
            assert {str(response.json()["label"]) for response in said} == {
                str({"client_uuid": body["client_uuid"], "kind": "label", "choice": "b_much", "order": None})
            }
            wanted[body["client_uuid"], "ann-0", "label", chaos.said_of("b_much", task)] += 1
    assert chaos.stored(config.store_url) == wanted
    assert chaos.inconsistencies(config.store_url) == []


def test_of_different_presses_on_one_pair_at_once_one_is_recorded_and_the_others_are_told(
    two_servers: tuple[LabelConfig, list[str], dict[str, str]],
) -> None:
    config, addresses, cookies = two_servers
    with chaos.signed_in(addresses[0], cookies["ann-0"]) as client:
        task = client.get("/api/v1/tasks").json()["tasks"][0]
    bodies = [
        {"client_uuid": f"press-{i:04}", "token": task["token"], "choice": chaos.CHOICES[i % 5]} for i in range(8)
    ]
    said = at_once(addresses, cookies["ann-0"], bodies)
    assert Counter(response.status_code for response in said) == {200: 1, 409: 7}
    (body,) = [body for body, response in zip(bodies, said, strict=True) if response.is_success]
    right = (body["client_uuid"], "ann-0", "label", chaos.said_of(body["choice"], task))
    assert chaos.stored(config.store_url) == {right: 1}
    assert chaos.inconsistencies(config.store_url) == []


def test_an_id_that_two_people_use_at_once_is_one_persons(
    two_servers: tuple[LabelConfig, list[str], dict[str, str]],
) -> None:
    config, addresses, cookies = two_servers
    tasks, start = {}, threading.Barrier(2)
    for name, cookie in cookies.items():
        with chaos.signed_in(addresses[0], cookie) as client:
            tasks[name] = client.get("/api/v1/tasks").json()["tasks"][0]

    def post(number: int) -> int:
        name = f"ann-{number}"
        body = {"client_uuid": "press-0001", "token": tasks[name]["token"], "choice": "a"}
        with chaos.signed_in(addresses[number], cookies[name], timeout=60) as client:
            start.wait()
            return client.post("/api/v1/labels", json=body).status_code

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(post, range(2))) == [200, 409]
    assert chaos.stored(config.store_url).total() == 1 and chaos.inconsistencies(config.store_url) == []


@pytest.mark.browser
def test_twenty_browsers_that_label_at_once_store_exactly_what_each_was_told(
    asked: Callable[..., LabelConfig], chromium: Any
) -> None:
    """Until nothing is left: in the end they are after the same last pairs."""
    config = asked(100)
    with chaos.serving(config) as address:
        contexts, pages, answers = [], {}, dict[str, list[Any]]()
        for name, cookie in chaos.let_in(config.store_url, 20).items():
            contexts.append(context := chromium.new_context())
            context.add_cookies([{"name": COOKIE, "value": cookie, "url": address}])
            page = pages[name] = context.new_page()
            page.on("response", lambda response, name=name: answers.setdefault(name, []).append(response))
            page.goto(f"{address}/label", wait_until="commit")
        for page in pages.values():
            page.wait_for_selector(READY)
        deadline = time.monotonic() + 120
        for key in itertools.cycle(PREFERRED):
            for page in pages.values():
                page.keyboard.press(key)  # the others press while this one's label is on its way
            if chaos.stored(config.store_url).total() == 100:
                break
            assert time.monotonic() < deadline, "pairs were left over"
        for page in pages.values():
            page.wait_for_selector(".tu-saved[data-saved=yes]")
        told = Counter[chaos.Said]()
        for name, responses in answers.items():
            bodies = [
                r.json() for r in responses if "/api/v1/" in r.url and r.status == 200 and r.request.method == "GET"
            ]
            posts = [r for r in responses if r.url.endswith("/api/v1/labels")]
            tasks = {task["token"]: task for body in bodies for task in body.get("tasks", [])}
            for post in posts:
                assert post.status == 200
                body, press = post.json(), post.request.post_data_json
                tasks |= {task["token"]: task for task in body["tasks"]}
                text = chaos.said_of(press["choice"], tasks[press["token"]])
                told[press["client_uuid"], name, body["label"]["kind"], text] += 1
        for context in contexts:
            context.close()
    assert chaos.stored(config.store_url) == told and told.total() == 100
    assert min(Counter(annotator for _, annotator, _, _ in told).values()) > 0 and len(pages) == 20
    assert chaos.inconsistencies(config.store_url) == []


READY = ".tu-label[data-state=ready]"
PREFERRED = "26374"
"""Keys of the graded scale: A, B, A slightly, B much, equal."""
