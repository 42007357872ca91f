"""The label store: what is said stays said, nothing is said twice, and nobody speaks for anybody else."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy as sa

from trueup.errors import DataError
from trueup.records import Message
from ui.service import CHOICES, LabelService
from ui.store import Item, StaleToken, Store, Text, Verdict, digest
from ui.tables import event


def pair(number: int, split: str = "train") -> Item:
    prompt = [Message(role="user", content=f"question {number}")]
    return Item(prompt, [Text(f"first {number}"), Text(f"second {number}")], "advice", split, {"policy": "p"})  # type: ignore[arg-type]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'labels.sqlite'}"


@pytest.fixture
def store(url: str):  # type: ignore[no-untyped-def]
    opened = Store(url)
    opened.set_queue(opened.add_items([pair(i) for i in range(5)]))
    yield opened
    opened.close()


def events(store: Store) -> list[sa.Row]:
    with store.read() as db:
        return list(db.execute(sa.select(event).order_by(event.c.event_id)))


def label(store: Store, annotator: str, uuid: str, tiers: list[list[int]] | None) -> None:
    shown = store.next_view(annotator)
    assert shown is not None
    store.answer(shown.token, annotator, uuid, tiers)


def test_a_label_can_be_neither_changed_nor_deleted(store: Store) -> None:
    label(store, "ann", "u-1", [[0], [1]])
    for statement in ("UPDATE event SET tiers = '[[1],[0]]'", "DELETE FROM event"):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.write() as db:
            db.exec_driver_sql(statement)
    assert len(store.rankings(["human"])) == 1


def test_the_side_is_undone_on_export(store: Store) -> None:
    """Whatever side an answer was drawn on, preferring it is exported as preferring it."""
    for number in range(5):
        shown = store.next_view("ann")
        assert shown is not None
        place = next(place for place, text in enumerate(shown.texts) if text.startswith("second"))
        store.answer(shown.token, "ann", f"u-{number}", [[place], [1 - place]])
    assert [row.tiers for row in store.rankings(["human"])] == [[[1], [0]]] * 5


def test_sides_are_drawn_anew_for_every_view_and_evenly(store: Store) -> None:
    left: Counter[str] = Counter()
    for number in range(400):
        shown = store.next_view(f"annotator {number}")
        assert shown is not None
        left[shown.texts[0]] += 1
    assert set(left) == {"first 0", "second 0"}
    assert 140 < left["first 0"] < 260  # 6 standard deviations of a fair coin


def test_a_press_that_is_sent_twice_is_one_label(store: Store) -> None:
    shown = store.next_view("ann")
    assert shown is not None
    after = store.answer(shown.token, "ann", "u-1", [[0], [1]])
    assert store.answer(shown.token, "ann", "u-1", [[0], [1]]) == after
    assert len(events(store)) == 1


def test_an_answered_token_takes_no_second_answer(store: Store) -> None:
    shown = store.next_view("ann")
    assert shown is not None
    store.answer(shown.token, "ann", "u-1", [[0], [1]])
    with pytest.raises(StaleToken):
        store.answer(shown.token, "ann", "u-2", [[1], [0]])
    assert len(events(store)) == 1


def test_nobody_can_answer_with_somebody_elses_token_or_request(store: Store) -> None:
    shown = store.next_view("ann")
    assert shown is not None
    with pytest.raises(StaleToken):
        store.answer(shown.token, "bob", "u-1", [[0], [1]])
    store.answer(shown.token, "ann", "u-1", [[0], [1]])
    with pytest.raises(StaleToken):
        label(store, "bob", "u-1", [[0], [1]])
    assert [row.annotator for row in events(store)] == ["ann"]


def test_two_people_label_the_same_pairs_without_meeting(store: Store) -> None:
    for number in range(5):
        label(store, "ann", f"a-{number}", [[0], [1]])
    assert store.next_view("ann") is None
    assert store.progress("bob").labelled == 0
    label(store, "bob", "b-0", [[0, 1]])
    assert Counter(row.annotator for row in store.rankings(["human"])) == {"ann": 5, "bob": 1}
    assert store.rankings(["human"])[-1].tiers == [[0, 1]]


def test_undo_takes_back_the_last_answer_and_shows_it_again_with_the_same_sides(store: Store) -> None:
    service = LabelService(store, "")
    first = service.task("ann")
    assert first.token is not None
    second = service.answer("ann", first.token, "a", "u-1")
    done, again = service.undo("ann", "u-2")
    assert done and again.texts == first.texts and again.token != first.token
    assert store.rankings(["human"]) == [] and again.progress.labelled == 0
    assert [row.kind for row in events(store)] == ["label", "undo"]
    # Corrected, and then on to the pair that was in front before.
    assert again.token is not None
    after = service.answer("ann", again.token, "b", "u-3")
    assert after.token == second.token and len(store.rankings(["human"])) == 1


def test_undo_walks_back_and_ends_at_the_beginning(store: Store) -> None:
    label(store, "ann", "u-1", [[0], [1]])
    label(store, "ann", "u-2", None)
    label(store, "bob", "u-3", [[0], [1]])
    assert store.undo("ann", "u-4")[0] and store.undo("ann", "u-5")[0]
    assert store.undo("ann", "u-6")[0] is False
    assert [row.annotator for row in store.rankings(["human"])] == ["bob"]


def test_an_undo_that_is_sent_twice_takes_back_one_label(store: Store) -> None:
    label(store, "ann", "u-1", [[0], [1]])
    label(store, "ann", "u-2", [[0], [1]])
    store.undo("ann", "u-3")
    assert store.undo("ann", "u-3")[0]
    assert len(store.rankings(["human"])) == 1


def test_a_skip_is_counted_and_is_no_label(store: Store) -> None:
    label(store, "ann", "u-1", CHOICES["skip"])
    assert store.rankings(["human"]) == []
    assert (store.progress("ann").labelled, store.progress("ann").skipped) == (0, 1)


def test_human_and_simulated_labels_never_mix_unless_asked(store: Store) -> None:
    ids = [pair(i).item_id for i in range(5)]
    store.put("simulated", "rubric:r", [Verdict(item_id, [[0], [1]]) for item_id in ids])
    label(store, "ann", "u-1", [[0], [1]])
    assert [row.source for row in store.rankings(["human"])] == ["human"]
    assert {row.source for row in store.rankings(["simulated"])} == {"simulated"}
    assert len(store.rankings(["human", "simulated"])) == 6
    assert store.progress("ann").labelled == 1


def test_a_machine_that_says_the_same_again_adds_nothing_and_a_changed_mind_supersedes(store: Store) -> None:
    item_id = pair(0).item_id
    for tiers, added in (([[0], [1]], 1), ([[0], [1]], 0), ([[1], [0]], 1), ([[0], [1]], 1)):
        assert store.put("simulated", "rubric:r", [Verdict(item_id, tiers)]) == added
    assert [row.tiers for row in store.rankings(["simulated"])] == [[[0], [1]]]
    assert len(events(store)) == 3


def test_the_digest_follows_peoples_labels_only_and_makes_no_file(store: Store, url: str, tmp_path: Path) -> None:
    assert digest(f"sqlite:///{tmp_path / 'none' / 'labels.sqlite'}") is None
    assert not (tmp_path / "none").exists()
    assert digest(url) is None
    store.put("simulated", "rubric:r", [Verdict(pair(0).item_id, [[0], [1]])])
    assert digest(url) is None
    label(store, "ann", "u-1", [[0, 1]])
    before = digest(url)
    assert before is not None and digest(url) == before
    label(store, "ann", "u-2", [[0, 1]])
    assert digest(url) != before
    store.undo("ann", "u-3")
    assert digest(url) == before


def test_people_are_asked_only_about_the_current_queue(store: Store) -> None:
    label(store, "ann", "u-1", [[0], [1]])
    stale = store.next_view("ann")
    store.set_queue(store.add_items([pair(9)]))
    shown = store.next_view("ann")
    assert shown is not None and shown.texts[0].endswith(" 9")
    assert stale is not None
    with pytest.raises(StaleToken):
        store.answer(stale.token, "ann", "u-2", [[0], [1]])
    assert len(store.rankings(["human"])) == 1, "labels about earlier answers stay in the store"
    assert store.rankings(["human"], [pair(9).item_id]) == []


def test_concurrent_annotators_lose_and_duplicate_nothing(store: Store) -> None:
    def work(name: str) -> None:
        for number in range(5):
            label(store, name, f"{name}-{number}", [[0], [1]])

    threads = [threading.Thread(target=work, args=(f"annotator {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = Counter(f"annotator {i}-{number}" for i in range(8) for number in range(5))
    assert Counter(row.client_uuid for row in events(store)) == expected


WRITER = """
import sys
from trueup.records import Message
from ui.store import Item, Store, Text
store = Store(sys.argv[1])
number = 0
while (shown := store.next_view("ann")) is not None:
    store.answer(shown.token, "ann", f"uuid-{number}", [[0], [1]])
    print(f"uuid-{number}", flush=True)  # the acknowledgement: only after the commit
    number += 1
"""


@pytest.mark.parametrize("acknowledged", [3, 25, 60])
def test_kill_9_in_a_burst_loses_no_acknowledged_label(store: Store, url: str, acknowledged: int) -> None:
    store.set_queue(store.add_items([pair(i) for i in range(3000)]))
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    seen = [writer.stdout.readline().strip() for _ in range(acknowledged)]
    os.kill(writer.pid, signal.SIGKILL)
    seen += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    with Store(url).read() as db:
        assert db.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    kept = Counter(row.client_uuid for row in events(store))
    assert set(seen) <= set(kept) and max(kept.values()) == 1
    assert len(kept) <= len(seen) + 1, "at most the label in flight was written and not confirmed"
    assert store.next_view("ann") is not None


def test_a_file_that_is_no_label_store_is_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.sqlite"
    text.write_text("these are notes, and not a database " * 40)
    with pytest.raises(DataError, match=r"notes\.sqlite"):
        Store(f"sqlite:///{text}")
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE event (id INTEGER)")
    with pytest.raises(DataError, match="not ours"):
        Store(f"sqlite:///{other}")
    with pytest.raises(DataError, match="in memory"):
        Store("sqlite://")


def test_a_store_of_a_newer_version_is_left_alone(store: Store, url: str) -> None:
    with store.write() as db:
        db.exec_driver_sql("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    with pytest.raises(DataError, match="newer Trueup"):
        Store(url)
