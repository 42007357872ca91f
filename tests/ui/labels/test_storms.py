"""Labels come through what happens to servers: databases that restart, clocks that jump, disks that fill up, imports
that are killed, presses that come twice and in any order.

benchmarks/storms.py runs the same for longer, and prints its figures.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import postgresql
import pytest

import chaos
import storms
from ui.people.accounts import COOKIE


def check(left: storms.Weathered, at_least: int) -> None:
    assert (left.lost, left.doubled, left.over_collected, left.problems) == ({}, {}, 0, [])
    assert left.acknowledged >= at_least


def test_a_database_that_crashes_and_restarts_loses_and_doubles_no_label(postgres: str) -> None:
    check(storms.restarts(rounds=2, annotators=4), at_least=20)


@pytest.mark.skipif(shutil.which("cc") is None, reason="NO C COMPILER: clocks are not moved (apt-get install gcc)")
def test_a_clock_that_jumps_loses_and_doubles_no_label() -> None:
    days = storms.DAY_S
    check(storms.clocks([0, -365 * days, 15 * days, 0], annotators=4), at_least=48)


@pytest.mark.skipif(os.getuid() != 0, reason="NOT ROOT: no small disk can be mounted")
def test_a_disk_that_fills_up_and_is_cleared_loses_and_doubles_no_label() -> None:
    left = storms.disks(rounds=2, annotators=4)
    check(left, at_least=20)
    assert left.told["503"] > 0, "somebody was told that the disk is full"


def test_presses_that_come_often_to_two_servers_in_any_order_are_one_label_each(store_url: str) -> None:
    check(storms.replays(store_url, presses=60, annotators=4), at_least=60)


def test_an_import_that_is_killed_goes_on_and_every_row_is_a_label_once(store_url: str) -> None:
    left, midway = storms.imports(store_url, rows=3000, kills=1, annotators=2)
    check(left, at_least=2)
    assert midway > 0


# ---- What people are told meanwhile ------------------------------------------------------------------------------


@pytest.fixture
def database(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[postgresql.Server]:
    """A PostgreSQL that a test may stop."""
    programs = postgresql.programs()
    assert programs is not None
    server = postgresql.Server(programs, tmp_path_factory.mktemp("database"))
    yield server
    server.crash()


def test_while_the_database_is_away_every_request_is_told_to_come_again_in_one_line_of_the_log(
    database: postgresql.Server, tmp_path: Path, serve: Callable[[Any], str], capfd: pytest.CaptureFixture[str]
) -> None:
    from ui.app import label_app

    config = chaos.campaign(tmp_path, 5, store=f"{database.url}/postgres")
    address = serve(label_app(config))
    cookie = chaos.let_in(config.store_url, 1)["ann-0"]
    with httpx.Client(base_url=address, headers={"Cookie": f"{COOKIE}={cookie}"}, timeout=60) as client:
        task = client.get("/api/v1/tasks").json()["tasks"][0]
        press = {"client_uuid": "press-0001", "token": task["token"], "choice": "a"}
        database.stop()
        capfd.readouterr()
        asked: list[tuple[str, str, dict[str, Any]]] = [
            ("GET", "/api/v1/tasks", {}),
            ("POST", "/api/v1/labels", {"json": press}),
            ("POST", "/login", {"data": {"name": "ann-0", "password": "x"}, "headers": {"Accept": "text/html"}}),
            ("GET", "/", {"headers": {"Accept": "text/html"}}),
        ]
        for method, path, options in asked:
            answer = client.request(method, path, **options)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "5"), path
            assert "out of reach at this moment" in answer.text
            assert ("<h1>Not at this moment" in answer.text) == ("headers" in options), path
            logged = capfd.readouterr()
            lines = (logged.out + logged.err).splitlines()
            assert len(lines) == 1 and f"{method} '{path}': OperationalError" in lines[0], lines
        database.start()
        assert client.post("/api/v1/labels", json=press).json()["label"]["kind"] == "label"
