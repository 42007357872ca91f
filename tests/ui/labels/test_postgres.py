"""A campaign on PostgreSQL is a campaign on SQLite: same answers, same figures, same exports, and clear errors.

The tests of the store, the service and the migrations run on both databases by the fixture `store_url`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

import chaos
from trueup.data.records import Ranking, read_rows
from trueup.errors import DataError, TrueupError
from ui.app import label_app
from ui.labels.backup import backup
from ui.labels.exchange import export_labels, import_labels
from ui.labels.store import Store
from ui.people import passwords
from ui.people.accounts import COOKIE
from ui.people.names import AccountError

PASSWORD = "four words are enough"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Accounts are made here; what a hash costs is tested elsewhere."""
    monkeypatch.setattr(passwords, "_LOG2_N", 4)


@pytest.fixture
def opened(campaign: Any, store_url: str) -> Iterator[Callable[..., TestClient]]:
    """Opens the application over a store on either database; `config` is its campaign."""
    apps = []

    def go(name: str | None = None) -> TestClient:
        config = campaign.label(store=store_url, labels_per_pair=2, repeat_share=0.0)
        apps.append(label_app(config))
        client = TestClient(apps[-1], base_url="http://127.0.0.1", follow_redirects=False)
        client.config = config  # type: ignore[attr-defined]
        people = apps[-1].state.people
        if name is not None:
            who = next(row for row in people.accounts() if row.name == name)
            client.cookies.set(COOKIE, people.open_session(who.account_id))
        return client

    yield go
    for app in apps:
        app.state.people.store.close()


def prefer(client: TestClient, longer: bool, **body: Any) -> dict[str, Any]:
    """Say of the first pair that waits that its longer, or its shorter, answer is better."""
    task = client.get("/api/v1/tasks").json()["tasks"][0]
    lengths = [len(answer["text"]) for answer in task["answers"]]
    choice = "ab"[lengths.index((max if longer else min)(lengths))]
    return post(client, task, choice=choice, **body)


def post(client: TestClient, task: dict[str, Any], **body: Any) -> dict[str, Any]:
    press = {"client_uuid": f"press-{task['token'][:20]}", "token": task["token"], "device": "key", **body}
    answer = client.post("/api/v1/labels", json=press)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_whole_campaign_gives_the_same_on_both_databases(opened: Callable[..., TestClient], tmp_path: Path) -> None:
    """What is expected is written here once; the fixture runs it on SQLite and on PostgreSQL."""
    people = opened().app.state.people  # type: ignore[attr-defined]
    for name, role in (("Root", "admin"), ("Ann", "annotator"), ("Bob", "annotator")):
        people.add(name, role, PASSWORD)
    ann, bob, root = opened("Ann"), opened("Bob"), opened("Root")  # three servers over one store
    for _ in range(4):
        prefer(ann, longer=True, seconds=3.5, note="Wärmer: “ja” 👍 \\ ' \" \n new line")
    for number in range(6):
        said = prefer(bob, longer=number != 0)
    assert said["progress"] == {"mine": 6, "skipped": 0, "left": 0, "practice": None}
    undone = ann.post("/api/v1/undo", json={"client_uuid": "undo-0001"}).json()
    assert undone["undone"] and undone["progress"]["mine"] == 3
    again = post(ann, undone["tasks"][0], choice="tie")
    assert (again["label"]["choice"], again["state"]) == ("tie", "work")
    task = again["tasks"][0]
    ideal = {"client_uuid": "ideal-0001", "token": task["token"], "text": "Freeze it."}
    assert ann.post("/api/v1/demonstrations", json=ideal).json() == {"saved": True}
    post(ann, task, choice="skip")
    assert ann.get("/api/v1/tasks").json()["progress"]["skipped"] == 1
    assert ann.get("/api/v1/admin/summary").status_code == 403

    for client, choice in ((ann, "both_bad"), (bob, "a")):
        bad = client.post("/api/v1/labels", json={"client_uuid": "press-0001", "token": "made-up", "choice": choice})
        assert bad.status_code == 409
    nul = {"client_uuid": "press-0002", "token": bob_token(ann), "choice": "a", "note": "a\0b"}
    assert ann.post("/api/v1/labels", json=nul).status_code == 422

    store = root.app.state.service.store  # type: ignore[attr-defined]
    assert store.left_choices(list(store.asked()))[1] == 9
    assert root.get("/api/v1/admin/summary").json()["progress"]["labels"] == 10
    assert len(root.get("/api/v1/admin/events").json()["events"]) == 4 + 6 + 1 + 1 + 1 + 1

    config = root.config  # type: ignore[attr-defined]
    export_labels(config, tmp_path / "labels.jsonl", rankings="whole")
    rows = read_rows(tmp_path / "labels.jsonl", Ranking)
    assert len(rows) == 10 and sum(len(row.tiers) == 1 for row in rows) == 1
    longest = [max(row.completions, key=len) == row.completions[row.tiers[0][0]] for row in rows if len(row.tiers) == 2]
    assert sorted(longest) == [False] + [True] * 8
    assert {row.note for row in rows} == {None, "Wärmer: “ja” 👍 \\ ' \" \n new line"}
    before = store.digest(1)
    import_labels(config, tmp_path / "labels.jsonl")  # its own labels: they are known
    assert store.digest(1) == before and len(store.rankings(["human"])) == 10
    assert chaos.inconsistencies(config.store_url) == []


def bob_token(client: TestClient) -> str:
    return str(client.get("/api/v1/tasks").json()["tasks"][0]["token"])


def test_accounts_sessions_and_invitations_outlive_the_server(opened: Callable[..., TestClient]) -> None:
    people = opened().app.state.people  # type: ignore[attr-defined]
    people.add("Ann", "annotator", PASSWORD)
    cookie = people.log_in("ANN", PASSWORD, "127.0.0.1").session
    invitation = people.invite("annotator")
    later = opened().app.state.people  # type: ignore[attr-defined]
    assert later.who(cookie).name == "Ann"
    with pytest.raises(AccountError):
        later.log_in("Ann", "another password", "127.0.0.1")
    assert later.who(later.accept(invitation, "Bob", PASSWORD).session).name == "Bob"
    with pytest.raises(AccountError):
        people.accept(invitation, "Carol", PASSWORD)
    later.disable("Ann")
    assert people.who(cookie) is None


# ---- PostgreSQL alone -------------------------------------------------------------------------------------------

on_postgresql = pytest.mark.parametrize("store_url", ["postgresql"], indirect=True)


@on_postgresql
def test_presses_go_on_after_the_database_dropped_every_connection(opened: Callable[..., TestClient]) -> None:
    opened().app.state.people.add("Ann", "annotator", PASSWORD)  # type: ignore[attr-defined]
    ann = opened("Ann")
    prefer(ann, longer=True)
    url = ann.config.store_url  # type: ignore[attr-defined]
    other = sa.create_engine(sa.make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
    with other.connect() as db:
        gone = sa.text("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = :name")
        assert db.scalar(gone, {"name": sa.make_url(url).database}) > 0
    other.dispose()
    assert prefer(ann, longer=False)["progress"]["mine"] == 2
    assert chaos.stored(url).total() == 2


@on_postgresql
def test_a_store_that_cannot_be_reached_is_an_error_in_one_line_without_its_password(store_url: str) -> None:
    sound = sa.make_url(store_url)
    for broken in (sound.set(port=1), sound.set(database="nowhere"), sound.set(username="nobody")):
        with pytest.raises(DataError, match="cannot be opened as a label store") as refused:
            Store(broken.set(password="s3cret").render_as_string(hide_password=False))
        assert "s3cret" not in str(refused.value) and "***" in str(refused.value)
    with pytest.raises(DataError, match="needs the Python package asyncpg"):
        Store(sound.set(drivername="postgresql+asyncpg").render_as_string(hide_password=False))


@on_postgresql
def test_a_database_that_holds_something_else_is_left_alone(store_url: str) -> None:
    engine = sa.create_engine(store_url)
    with engine.begin() as db:
        db.exec_driver_sql("CREATE TABLE account (money numeric)")
    with pytest.raises(DataError, match="holds a table account that is not ours"):
        Store(store_url)
    assert sa.inspect(engine).get_table_names() == ["account"]
    engine.dispose()


@on_postgresql
def test_backup_names_the_databases_own_tool(campaign: Any, store_url: str, tmp_path: Path) -> None:
    Store(store_url).close()
    with pytest.raises(TrueupError, match="pg_dump"):
        backup(campaign.label(store=store_url).store_url, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
