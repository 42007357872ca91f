"""The label store: what is said stays said, machines and people do not mix, and the queue keeps what is labelled."""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from trueup.data.pairs import pairs_of
from trueup.errors import DataError
from ui.labels import assignment
from ui.labels.items import Gold, ProgramLabel, QueueEntry
from ui.labels.service import LabelService
from ui.labels.store import Store, digest
from ui.labels.tables import event, item, slot
from ui.labels.tasks import Judgement, Settings

MakeItem = Callable[..., Any]


@pytest.fixture
def store(asking: Callable[..., Store]) -> Store:
    return asking(5)


@pytest.fixture
def say(store: Store) -> Callable[..., str]:
    """Answers the next task of somebody; returns the label's id."""
    service = LabelService(store)

    def answer(annotator: str, choice: str = "a", **values: Any) -> str:
        task = service.tasks(annotator)[0]
        name = f"{annotator}-{task.token}"
        service.label(annotator, Judgement(name, task.token, choice, **values))
        return name

    return answer


def events(store: Store) -> list[Any]:
    with store.read() as db:
        return list(db.execute(sa.select(event).order_by(event.c.event_id)))


def slots(store: Store) -> list[tuple[str, int, str]]:
    query = sa.select(slot.c.item_id, slot.c.slot_no, slot.c.state).order_by(slot.c.position, slot.c.slot_no)
    with store.read() as db:
        return [tuple(row) for row in db.execute(query)]


# ---- Events -----------------------------------------------------------------------------------------------------


def test_a_label_can_be_neither_changed_nor_deleted(store: Store, say: Callable[..., str]) -> None:
    say("ann")
    for statement in ("UPDATE event SET tiers = '[[1],[0]]'", "DELETE FROM event"):
        with pytest.raises(sa.exc.IntegrityError, match="append-only"), store.write() as db:
            db.exec_driver_sql(statement)
    assert len(store.rankings(["human"])) == 1


def test_human_and_simulated_labels_never_mix_unless_asked(store: Store, say: Callable[..., str]) -> None:
    store.put("simulated", "rubric:r", [ProgramLabel(name, [[0], [1]]) for name in store.asked()])
    say("ann")
    assert [row.source for row in store.rankings(["human"])] == ["human"]
    assert {row.source for row in store.rankings(["simulated"])} == {"simulated"}
    assert len(store.rankings(["human", "simulated"])) == 6
    assert LabelService(store).progress("ann").mine == 1


def test_a_machine_that_says_the_same_again_adds_nothing_and_a_changed_mind_supersedes(store: Store) -> None:
    item_id = next(iter(store.asked()))
    for tiers, added in (([[0], [1]], 1), ([[0], [1]], 0), ([[1], [0]], 1), ([[0], [1]], 1)):
        assert store.put("simulated", "rubric:r", [ProgramLabel(item_id, tiers)]) == added
    assert [row.tiers for row in store.rankings(["simulated"])] == [[[0], [1]]]
    assert len(events(store)) == 3


def test_an_exported_pair_says_where_it_came_from(store: Store) -> None:
    service = LabelService(store, Settings(guideline="Be kind."))
    task = service.tasks("ann")[0]
    place = next(i for i, text in enumerate(task.texts) if text.startswith("second"))
    answer = Judgement("label-0001", task.token, "ab"[place] + "_much", seconds=4.5, note="It is warmer.")
    service.label("ann", answer)
    (ranking,) = store.rankings(["human"])
    (pair,) = pairs_of(ranking)
    assert pair.chosen[0].content.startswith("second") and pair.display_first == ("chosen", "rejected")[place]
    assert (pair.label_id, pair.annotator, pair.strength, pair.seconds) == ("label-0001", "ann", 3, 4.5)
    assert pair.sampler == {"policy_sha256": "p", "temperature": 0.5, "seed": 1}
    assert (pair.source, pair.selection, pair.propensity) == ("human", "random", 0.25)
    assert pair.guideline_sha256 == service.guideline_sha256 and ranking.note == "It is warmer."


def test_the_digest_follows_what_people_say_only_and_makes_no_file(
    store: Store, say: Callable[..., str], tmp_path: Path
) -> None:
    url = store.url.render_as_string(hide_password=False)
    assert digest(f"sqlite:///{tmp_path / 'none' / 'labels.sqlite'}", 1) is None
    assert not (tmp_path / "none").exists()
    assert digest(url, 1) is None
    store.put("simulated", "rubric:r", [ProgramLabel(next(iter(store.asked())), [[0], [1]])])
    assert digest(url, 1) is None
    say("ann", "tie")
    before = digest(url, 1)
    assert before is not None and digest(url, 1) == before
    say("ann", "skip")
    assert digest(url, 1) == before
    say("ann", "tie")
    assert digest(url, 1) != before
    LabelService(store).undo("ann", "undo-0001")
    assert digest(url, 1) == before


# ---- The queue --------------------------------------------------------------------------------------------------


def test_items_that_are_there_are_kept_and_a_changed_sampler_is_taken_over(store: Store, make_item: MakeItem) -> None:
    changed = make_item(0, sampler={"policy_sha256": "q"})
    assert store.add_items([changed, make_item(7)]) == [changed.item_id, make_item(7).item_id]
    with store.read() as db:
        assert db.scalar(sa.select(sa.func.count()).select_from(item)) == 6
        assert db.scalar(sa.select(item.c.sampler).where(item.c.item_id == changed.item_id)) == {"policy_sha256": "q"}


def test_so_many_labels_are_wanted_of_each_pair(store: Store) -> None:
    ids = list(store.asked())
    store.ask([QueueEntry(name, "random", 1.0) for name in ids], labels_per_pair=3)
    assert Counter(name for name, _, _ in slots(store)) == dict.fromkeys(ids, 3)
    store.ask([QueueEntry(name, "random", 1.0) for name in ids], labels_per_pair=2)
    assert Counter(name for name, _, _ in slots(store)) == dict.fromkeys(ids, 2)


def test_what_is_labelled_stays_counted_when_the_queue_is_rewritten(store: Store, say: Callable[..., str]) -> None:
    for _ in range(3):
        say("ann")
    asked = list(store.asked().values())
    said = {row.item_id for row in events(store)}
    store.ask(asked[::-1], labels_per_pair=2)
    states = Counter(state for name, _, state in slots(store) if name in said)
    assert states["filled"] == 3 and len(slots(store)) == 10
    # Out of the queue and back in: the labels are found again, and whoever gave them sees them counted all the time.
    store.ask(asked[4:])
    assert LabelService(store).progress("ann").mine == 3
    store.ask(asked)
    assert LabelService(store).progress("ann").mine == 3
    assert [state for _, _, state in slots(store)].count("filled") == 3 and len(slots(store)) == 5


@pytest.mark.parametrize("first", [1, 3, 5])
def test_a_queue_that_grows_ends_as_one_that_was_whole_and_keeps_what_is_labelled(
    store: Store, make_item: MakeItem, say: Callable[..., str], first: int
) -> None:
    whole = [QueueEntry(name, "random", 0.25) for name in store.add_items(make_item(i) for i in range(6))]
    for _ in range(2):
        say("ann")
    store.ask(whole[6 - first :], labels_per_pair=2, expected=6)
    assert store.counts() == (2, 12, 6), "the end is told at once, or each answer would have the rest estimated anew"
    say("bob")
    labelled = [row.item_id for row in events(store)]
    assert labelled == [whole[0].item_id, whole[1].item_id, whole[6 - first].item_id]
    with store.write_as("bob") as db:
        leased = {row.item_id for row in assignment.waiting(db, "bob")}
    for entry in whole[: 6 - first]:
        store.ask_more([entry], labels_per_pair=2)
    assert store.counts() == (3, 12, 6)
    by_item = Counter(name for name, _, _ in slots(store))
    assert by_item == dict.fromkeys((entry.item_id for entry in whole), 2)
    filled = [name for name, _, state in slots(store) if state == "filled"]
    assert Counter(filled) == Counter(labelled)
    with store.write_as("bob") as db:
        assert {row.item_id for row in assignment.waiting(db, "bob")} == leased, "what somebody looks at stays theirs"
    store.ask(whole, labels_per_pair=2)
    assert store.counts() == (3, 12, 6)
    waits = dict.fromkeys(name for name, _, state in slots(store) if state == "open")
    assert list(waits) == [entry.item_id for entry in whole if entry.item_id in waits] and waits


def test_target_labels_never_fall_below_those_that_are_there(store: Store, say: Callable[..., str]) -> None:
    asked = list(store.asked().values())
    store.ask(asked[:1], labels_per_pair=3)
    for annotator in ("ann", "bob", "cem"):
        say(annotator)
    store.ask(asked[:1], labels_per_pair=1)
    assert [state for _, _, state in slots(store)] == ["filled"] * 3


def test_no_constraint_lets_one_person_fill_two_slots_of_a_pair(store: Store) -> None:
    asked = list(store.asked().values())
    store.ask(asked[:1], labels_per_pair=2)
    with pytest.raises(sa.exc.IntegrityError), store.write() as db:
        db.execute(slot.update().values(state="filled", annotator="ann"))


def test_an_item_is_a_hidden_check_or_practice_and_not_both(store: Store) -> None:
    names = list(store.asked())
    store.set_gold("check", [Gold(name, [[0], [1]]) for name in names[:3]])
    store.set_gold("qualification", [Gold(names[0], [[0], [1]], "the first is warmer")])
    assert [one.item_id for one in store.gold("check")] == names[1:3]
    assert store.gold("qualification") == [Gold(names[0], [[0], [1]], "the first is warmer")]


# ---- Files ------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("version", ["2", "99"])
def test_a_store_of_another_version_is_left_alone(asking: Callable[..., Store], version: str) -> None:
    store = asking(1)
    with store.write() as db:
        db.exec_driver_sql(f"UPDATE meta SET value = '{version}' WHERE key = 'schema_version'")
    for read_only in (False, True):
        with pytest.raises(DataError, match=f"store version {version}, this one reads 4"):
            Store(store.url.render_as_string(hide_password=False), read_only)


def test_the_copy_of_a_store_that_is_refused_is_taken_away_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Store(f"sqlite:///{tmp_path}/labels.sqlite")
    with old.write() as db:
        db.exec_driver_sql("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    old.close()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with pytest.raises(DataError, match="store version 2") as refused:
        Store(old.url, read_only=True)
    assert list((tmp_path / "temporary").iterdir()) == [], refused.value
