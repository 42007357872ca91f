"""The HTTP API: typed, idempotent, and it tells a browser nothing but texts."""

from __future__ import annotations

import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from typing import Any

import pytest
from pydantic import TypeAdapter

from trueup.data.words import count_words
from ui.label.run import prepare
from ui.labels import judgements
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tasks import Judgement, Recorded, Settings, TaskHead, Undone
from ui.pages.label_api import Opening, RenderedTask, _rendered

API = "/api/v1"


def press(client: Any, path: str, **body: Any) -> Any:
    return client.post(f"{API}/{path}", json={"client_uuid": str(uuid.uuid4()), **body})


def tasks(client: Any) -> list[dict[str, Any]]:
    return client.get(f"{API}/tasks").json()["tasks"]


def test_what_it_says_is_what_its_description_says(client: Any) -> None:
    work = client.get(f"{API}/tasks")
    TypeAdapter(Opening).validate_json(work.content, strict=True)
    token = work.json()["tasks"][0]["token"]
    saved = press(client, "demonstrations", token=token, text="Freeze it.")
    assert saved.json() == {"saved": True}
    done = press(client, "labels", token=token, choice="a_slightly", seconds=3.25, device="key")
    TypeAdapter(Recorded[RenderedTask]).validate_json(done.content, strict=True)
    assert done.json()["progress"]["mine"] == 1 and done.json()["state"] == "work"
    TypeAdapter(Undone[RenderedTask]).validate_json(press(client, "undo").content, strict=True)
    assert client.post(f"{API}/heartbeat", json={}).json() == {}
    described = client.get(f"{API}/openapi.json").json()
    for path in ("tasks", "labels", "demonstrations", "undo", "heartbeat"):
        assert f"{API}/{path}" in described["paths"]
    schemas = described["components"]["schemas"]
    assert {"Judgement", "IdealCompletion", "Opening", "RenderedTask", "Problem"} <= schemas.keys()
    assert schemas["Judgement"]["properties"]["order"]["description"] == "Tiers of places, best first."


def test_a_task_holds_texts_and_an_opaque_token_and_nothing_else(client: Any, secret: str) -> None:
    response = client.get(f"{API}/tasks")
    for task in response.json()["tasks"]:
        assert task.keys() == {"token", "prompt", "answers", "wants_rationale", "practice"}
        assert all(answer.keys() == {"html", "text", "reasoning"} for answer in task["answers"])
    for hidden in (secret, "987654", "policy", "finished", "token_ids", "item_id", "purpose"):
        assert hidden not in response.text
    assert response.headers["cache-control"] == "no-store"


def test_a_press_that_is_sent_again_gets_the_stored_answer(client: Any) -> None:
    body = {"client_uuid": str(uuid.uuid4()), "token": tasks(client)[0]["token"], "choice": "b_much"}
    first = client.post(f"{API}/labels", json=body)
    again = client.post(f"{API}/labels", json=body)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()
    assert first.json()["label"] == {
        "client_uuid": body["client_uuid"],
        "kind": "label",
        "choice": "b_much",
        "order": None,
    }
    assert len(client.app.state.service.store.rankings(["human"])) == 1


def test_a_stale_token_is_refused_with_what_does_wait(client: Any) -> None:
    token = tasks(client)[0]["token"]
    press(client, "labels", token=token, choice="a")
    refused = press(client, "labels", token=token, choice="b")
    assert refused.status_code == 409
    assert refused.json() == client.get(f"{API}/tasks").json()
    assert len(client.app.state.service.store.rankings(["human"])) == 1


@pytest.mark.parametrize(
    "body",
    [
        {"choice": "left"},
        {"choice": None},
        {"choice": "a", "order": [[0], [1]]},
        {"choice": "a", "score": 1},
        {"choice": "a", "seconds": -1},
        {"choice": "a", "seconds": "fast"},
        {"choice": "a", "device": "mind"},
        {"choice": "a", "criteria": {"kind": "a"}},
        {"choice": "a", "criteria": {"kind": "left"}},
        {"choice": "a", "note": "x" * 20_001},
        {"choice": "a", "note": "\ud800"},
        {"choice": "a", "client_uuid": "short"},
        {"choice": "a", "client_uuid": "a b c d e f g"},
        {"choice": "a", "client_uuid": None},
        {"choice": "a", "token": 7},
        {"order": [["0"], [1]], "choice": None},
        {"order": [[10**400]], "choice": None},
    ],
)
def test_bad_input_is_refused_in_words_and_changes_nothing(client: Any, body: dict[str, Any]) -> None:
    before = client.get(f"{API}/tasks").json()
    values = {"client_uuid": str(uuid.uuid4()), "token": before["tasks"][0]["token"], **body}
    refused = client.post(f"{API}/labels", content=json.dumps(values), headers={"Content-Type": "application/json"})
    assert refused.status_code == 422
    assert isinstance(refused.json()["detail"], str) and "\n" not in refused.json()["detail"]
    assert client.get(f"{API}/tasks").json() == before


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(client: Any, content: bytes) -> None:
    refused = client.post(f"{API}/labels", content=content, headers={"Content-Type": "application/json"})
    assert refused.status_code in (400, 422) and isinstance(refused.json()["detail"], str)


@pytest.mark.parametrize(
    "body",
    [
        {f"key {n} {'x' * 200}": 1 for n in range(4000)},
        {"client_uuid": "x" * 8, "token": "t", "order": [["x"] for _ in range(50_000)]},
        {"client_uuid": "x" * 8, "token": "t", "choice": "a", "criteria": {f"c{n}": "q" for n in range(50_000)}},
    ],
    ids=["keys", "order", "criteria"],
)
def test_a_request_with_very_many_problems_is_refused_in_a_few_lines(client: Any, body: dict[str, Any]) -> None:
    refused = client.post("/api/v1/labels", json=body)
    assert refused.status_code == 422 and len(refused.text) < 3000


def test_without_a_session_nothing_is_said(client: Any) -> None:
    client.cookies.clear()
    assert client.get(f"{API}/tasks").status_code == 401
    for path in ("labels", "undo", "demonstrations", "heartbeat"):
        assert press(client, path).status_code == 401


def test_undo_brings_the_pair_back_first(client: Any) -> None:
    shown = tasks(client)
    press(client, "labels", token=shown[1]["token"], choice="a")
    undone = press(client, "undo").json()
    assert undone["undone"] and undone["tasks"][0]["answers"] == shown[1]["answers"]
    assert press(client, "undo").json()["undone"] is False


def test_the_last_label_says_that_all_is_done(client: Any) -> None:
    work = client.get(f"{API}/tasks").json()
    while work["tasks"]:
        work = press(client, "labels", token=work["tasks"][0]["token"], choice="tie").json()
    assert work["state"] == "done" and work["progress"] == {
        "mine": 6,
        "skipped": 0,
        "left": 0,
        "practice": None,
    }


def test_what_the_service_says_of_a_task_is_what_the_page_gets(client: Any) -> None:
    (task, *_) = client.app.state.service.tasks("local")
    (sent, *_) = tasks(client)
    assert {head.name: getattr(task, head.name) for head in fields(TaskHead)}.items() <= sent.items()


def test_many_clients_at_once_get_different_pairs_and_lose_nothing(client: Any) -> None:
    from fastapi.testclient import TestClient

    from ui.people.accounts import COOKIE

    people = client.app.state.people
    accounts = []
    for number in range(4):
        people.add(f"annotator {number}", "annotator", "four words are enough")
    accounts = [row.account_id for row in people.accounts()]

    def work(account_id: int) -> list[str]:
        own = TestClient(client.app, base_url="http://127.0.0.1")
        own.cookies.set(COOKIE, people.open_session(account_id))
        said = []
        while waiting := tasks(own):
            said.append(press(own, "labels", token=waiting[0]["token"], choice="a").json()["label"]["client_uuid"])
        return said

    with ThreadPoolExecutor(4) as pool:
        said = [name for names in pool.map(work, accounts) for name in names]
    rows = client.app.state.service.store.rankings(["human"])
    assert sorted(row.label_id for row in rows) == sorted(said) and len(said) == 6
    assert len({row.prompt_id for row in rows}) == 6


# ---- Texts of any form ------------------------------------------------------------------------------------------

NEWLINES = [f"{word}{chr(10) * 12_000}." for word in ("Yes", "No", "Perhaps")]


def degenerate(campaign: Any, answers_to: Any, texts: list[str]) -> Any:
    """The API of a campaign that ranks these answers, and its service."""
    campaign.sampled([answers_to("Is it?\n\n[1]: https://example.org", texts)])
    config = campaign.label(task="ranking")
    store = Store(config.store_url)
    prepare(config, store)
    return LabelService(store, Settings.of(config))


def test_the_page_with_three_answers_of_12000_newlines_comes_within_200_ms(campaign: Any, answers_to: Any) -> None:
    service = degenerate(campaign, answers_to, NEWLINES)
    began = time.process_time()
    (task, *_) = _rendered(service.work("ann")).tasks
    recorded = service.label("ann", Judgement("press-0001", task.token, order=[[0], [1], [2]]))
    took = time.process_time() - began
    assert took < 0.2, f"{took:.3f} s"
    assert recorded.label.order == [[0], [1], [2]] and len(task.answers) == 3
    assert all("11999 blank lines" in answer.html for answer in task.answers)
    service.store.close()


def test_texts_are_made_ready_while_nobody_waits_to_write(
    campaign: Any, answers_to: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = degenerate(campaign, answers_to, NEWLINES)
    held: list[bool] = []

    def watched(real: Any) -> Any:
        def work(*args: Any) -> Any:
            held.append(service.store._writing.locked())
            return real(*args)

        return work

    monkeypatch.setattr("ui.labels.judgements.clean", watched(judgements.clean))
    monkeypatch.setattr("ui.labels.items.count_words", watched(count_words))
    token = service.tasks("ann")[0].token
    service._items.clear()  # as after a restart
    service.label("ann", Judgement("press-0001", token, order=[[0], [1], [2]]))
    service.undo("ann", "press-0002")
    assert len(held) >= 6 and not any(held)
    service.store.close()


def test_two_answers_that_look_alike_are_shown_as_they_were_written(campaign: Any, answers_to: Any) -> None:
    service = degenerate(campaign, answers_to, ["- tea\n- milk", "* tea\n* milk", "+ tea\n+ milk"])
    (task,) = _rendered(service.work("ann")).tasks
    assert len({answer.html for answer in task.answers}) == 3
    assert all('class="tu-plain"' in answer.html for answer in task.answers)
    assert "https://example.org" in task.prompt, "a definition of a link is text"
    service.store.close()
