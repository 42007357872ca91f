"""Hidden checks stay hidden: nothing that an annotator gets tells a gold item or a repeat from work, and what was
measured stays measured."""

from __future__ import annotations

import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from ui.app import label_app
from ui.blindcheck.run import blindcheck
from ui.blindcheck.secrets import Tells
from ui.figures.figures import figures
from ui.figures.log import WORK, Log, known_answers
from ui.figures.view import View
from ui.label.run import prepare
from ui.labels import assignment, progress
from ui.labels.config import LabelConfig
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import event, view
from ui.labels.tasks import Judgement, Settings
from ui.people.accounts import COOKIE

API = "/api/v1"
CHECKS = 25


@pytest.fixture
def config(asking_for: Callable[[int], LabelConfig]) -> LabelConfig:
    return asking_for(70)


@pytest.fixture
def asking_for(campaign: Any, answers_to: Any, tmp_path: Path) -> Callable[[int], LabelConfig]:
    """So many pairs to label, with gold items and repeats among them, and their store."""

    def ask(pairs: int) -> LabelConfig:
        rows = [
            answers_to(f"How do I mend chair {i}?", [f"Glue leg {i} and wait.", f"Buy chair {i}, it is quicker."])
            for i in range(pairs)
        ]
        campaign.sampled(rows)
        made = _with_gold(campaign, tmp_path)
        store = Store(made.store_url)
        prepare(made, store)
        store.close()
        return made

    return ask


def _with_gold(campaign: Any, folder: Path) -> LabelConfig:
    known = [{"prompt": f"{i}+1?", "chosen": f"It is {i + 1}.", "rejected": "No idea."} for i in range(CHECKS)]
    path = folder / "gold.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in known))
    made: LabelConfig = campaign.label(gold=path, gold_share=0.25, repeat_share=0.25)
    return made


class Annotator:
    """Labels over the API, and may look up what each token was for."""

    def __init__(self, client: Any, store: Store):
        self.client, self.store = client, store

    def get(self, path: str) -> Any:
        return self.client.get(f"{API}/{path}")

    def post(self, path: str, **body: Any) -> Any:
        return self.client.post(f"{API}/{path}", json={"client_uuid": str(uuid.uuid4()), **body})

    def purpose(self, token: str) -> str:
        with self.store.read() as db:
            return str(db.scalar(sa.select(view.c.purpose).where(view.c.token == token)))

    def checks(self) -> list[Any]:
        return self.store.checks().get("me") or next(iter(self.store.checks().values()), [])


@pytest.fixture
def me(config: LabelConfig) -> Iterator[Annotator]:
    from fastapi.testclient import TestClient

    app = label_app(config)
    with TestClient(app, base_url="http://127.0.0.1:7860") as client:
        client.cookies.set(COOKIE, app.state.people.open_session(None))
        yield Annotator(client, app.state.service.store)


def moved(before: Any, after: Any) -> dict[str, Any]:
    """What changed of all numbers of an answer, however deep."""
    flat = dict(leaves(before))
    return {key: round(value - (flat.get(key) or 0), 9) for key, value in leaves(after) if isinstance(value, int)}


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, f"{key}.{name}")
    else:
        yield key, value


def test_no_counter_and_no_answer_tells_a_check_from_work(me: Annotator) -> None:
    seen: dict[str, Counter[str]] = {}
    queues: list[list[int]] = []
    before, mirror, number = me.get("tasks").json(), me.get("mirror").json(), 0
    while before["tasks"]:
        number += 1
        token = before["tasks"][0]["token"]
        told = [me.post("labels", token=token, choice="ab"[number % 2], seconds=20)]
        if number % 3 == 1:
            told += [me.post("undo")]
            again = told[-1].json()["tasks"][0]["token"]
            assert again != token and me.purpose(again) == me.purpose(token)
            told += [me.post("labels", token=again, choice="ab"[number % 2], seconds=20)]
        after, own = me.get("tasks").json(), me.get("mirror").json()
        counters = moved(before["progress"], after["progress"])
        left = counters.pop(".left")
        # What is left is reckoned anew after every so many answers, and never for one: else each takes one from it.
        assert left == -1 or number % 20 == 0 or after["progress"]["left"] <= 3, number
        queues.append([len(one.json()["tasks"]) for one in told])
        figures = {key: value for key, value in moved(mirror, own).items() if not key.endswith("longer.n")}
        features = {
            "status": [one.status_code for one in told],
            "headers": [sorted(one.headers) for one in told],
            "keys": [sorted(key for key, _ in leaves(one.json())) for one in told],
            "counters": counters,
            "figures": sorted(figures.items()),
        }
        seen.setdefault(me.purpose(token), Counter())[f"{number % 3 == 1} {json.dumps(features)}"] += 1
        before, mirror = after, own
    assert all(seen[purpose].total() >= 8 for purpose in ("work", "gold", "repeat")), seen
    assert set(seen["gold"]) | set(seen["repeat"]) <= set(seen["work"])
    for press, lengths in enumerate(queues, start=1):
        ahead, with_undone = min(3, number - press), min(3, number - press + 1)
        assert lengths in ([ahead], [ahead, with_undone, ahead]), f"press {press} of {number}"
    assert before["progress"]["mine"] == number == mirror["labels"], "one counter, with one definition"


def test_an_answer_that_was_taken_back_still_counts_for_what_it_measured(me: Annotator) -> None:
    """Whoever noticed a gold item could mend every answer to it."""
    tasks, mended = me.get("tasks").json()["tasks"], 0
    while tasks:
        task = tasks[0]
        wrong = next((place for place, answer in enumerate(task["answers"]) if answer["text"] == "No idea."), 0)
        tasks = me.post("labels", token=task["token"], choice="ab"[wrong]).json()["tasks"]
        if me.purpose(task["token"]) != "work":
            token = me.post("undo").json()["tasks"][0]["token"]
            tasks = me.post("labels", token=token, choice="ba"[wrong]).json()["tasks"]
            mended += 1
    assert mended >= 16
    (checks,) = me.store.checks().values()
    assert len(checks) >= 8 and all(said != known for said, known in checks), "the first answer to each"
    with me.store.read() as db:
        log = Log()
        log.read(db, newest=None)
        found = figures(log, known_answers(db, log), 0, {})
    gold, same = found["overall"]["gold"], found["overall"]["consistency"]
    assert (gold["value"], gold["n"]) == (0.0, len(checks))
    repeats = Counter(me.purpose(token) for token in _labelled(me.store))["repeat"]
    assert same["n"] == repeats // 2, "of each repeat the first of its two labels"


def _labelled(store: Store) -> list[str]:
    with store.read() as db:
        return list(db.scalars(sa.select(event.c.view_token).where(event.c.kind == "label")))


def test_what_is_lost_while_somebody_is_away_is_not_work_alone(asking_for: Any, tmp_path: Path) -> None:
    """Work whose lease ran out goes to others; a check that stayed behind would be known as one."""
    config = asking_for(5)
    purposes = Counter[str]()
    for n in range(12):
        store = Store(f"sqlite:///{tmp_path}/{n}.sqlite")
        prepare(config, store)
        asked = LabelService(store, Settings.of(config.model_copy(update={"gold_share": 0.5, "lease_minutes": 1e-6})))
        held = [task.token for task in asked.tasks("ann")]
        with store.read() as db:
            rows = db.execute(sa.select(view.c.token, view.c.purpose).where(view.c.annotator == "ann"))
            purpose = {row.token: row.purpose for row in rows}
        while asked.store.counts()[0] < 5:
            for task in asked.tasks("bob"):
                asked.label("bob", Judgement(str(uuid.uuid4()), task.token, "a"))
        if "work" in [purpose[token] for token in held]:
            assert {task.token for task in asked.tasks("ann")}.isdisjoint(held)
            for token in held:
                purposes[purpose[token]] += 1
                assert asked.label("ann", Judgement(str(uuid.uuid4()), token, "a")).label.kind == "late"
        store.close()
    assert purposes["gold"] >= 3 <= purposes["work"]


def test_nothing_but_work_comes_once_work_has_run_out(me: Annotator) -> None:
    """With fewer tasks in front than usual, whatever came would be a check."""
    before = me.get("tasks").json()["tasks"]
    while before:
        after = me.post("labels", token=before[0]["token"], choice="a").json()["tasks"]
        came = [task for task in after if task["token"] not in {one["token"] for one in before}]
        assert not came or len(after) == assignment.AHEAD
        before = after


def test_blindcheck_finds_nothing_here_and_says_what_it_compared(asking_for: Any) -> None:
    config = asking_for(40)
    text, clean = blindcheck(config)
    assert clean, text
    assert "compared after each label and after its undo: " in text and " gold, " in text and " repeat, " in text


def _work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures of one's own labels, checks apart: what it once was."""
    real = View.__init__
    monkeypatch.setattr(View, "__init__", lambda self, log, known, *_: real(self, log, known, (WORK,)))


def _estimated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "ESTIMATED_AFTER", 1)


@pytest.mark.parametrize(
    ("leak", "where"), [(_work_alone, "mirror after label: labels"), (_estimated_at_once, "progress.left")]
)
def test_blindcheck_finds_counters_that_tell(
    asking_for: Any, monkeypatch: pytest.MonkeyPatch, leak: Callable[[Any], None], where: str
) -> None:
    leak(monkeypatch)
    text, clean = blindcheck(asking_for(40))
    assert not clean and where in text and "tells hidden checks from work" in text, text


def test_a_feature_is_a_tell_only_where_chance_does_not_explain_it() -> None:
    rng = random.Random(0)
    tells = Tells()
    for i in range(200):
        purpose = rng.choice(["work", "work", "gold"])
        body = {"progress": {"mine": i, "left": 200 - i if purpose == "gold" else 0, "n": rng.randrange(3)}}
        tells.tell(purpose, "label", 200, ["etag"] if purpose == "gold" and i > 100 else [], body)
    assert {feature for feature, _ in tells.findings()} == {"label: progress.left", "label: headers"}
