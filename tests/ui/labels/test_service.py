"""What people say: one press is one label, nobody sees whose answer it is, nobody gets what is another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from ui.labels.assignment import AHEAD
from ui.labels.items import Gold, QueueEntry
from ui.labels.judgements import GRADED
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import event, slot, view
from ui.labels.tasks import BadJudgement, IdealCompletion, Judgement, Recorded, Settings, StaleToken, Task

MakeItem = Callable[..., Any]
Asking = Callable[..., Store]


def service(store: Store, **settings: Any) -> LabelService:
    return LabelService(store, Settings(**settings))


def say(
    asked: LabelService, annotator: str, choice: str = "a", task: Task | None = None, **values: Any
) -> Recorded[Task]:
    task = task or asked.tasks(annotator)[0]
    return asked.label(annotator, Judgement(f"{annotator}-{task.token}", task.token, choice, **values))


def texts(tasks: list[Task]) -> list[set[str]]:
    return [set(task.texts) for task in tasks]


def events(store: Store, *kinds: str) -> list[Any]:
    with store.read() as db:
        rows = list(db.execute(sa.select(event).order_by(event.c.event_id)))
    return [row for row in rows if not kinds or row.kind in kinds]


def states(store: Store) -> Counter[str]:
    with store.read() as db:
        return Counter(db.scalars(sa.select(slot.c.state)))


def expire(store: Store, annotator: str) -> None:
    """As if their leases had run out."""
    with store.write() as db:
        db.execute(slot.update().where(slot.c.annotator == annotator, slot.c.state == "leased").values(expires_at=1.0))


# ---- Sides ------------------------------------------------------------------------------------------------------


def test_the_side_is_undone_whatever_side_an_answer_was_drawn_on(asking: Asking) -> None:
    asked = service(asking(5))
    for _ in range(5):
        task = asked.tasks("ann")[0]
        place = next(place for place, text in enumerate(task.texts) if text.startswith("second"))
        say(asked, "ann", "ab"[place], task)
    assert [row.tiers for row in asked.store.rankings(["human"])] == [[[1], [0]]] * 5
    left, strict = asked.store.left_choices(list(asked.store.asked()))
    assert strict == 5 and left == sum(row.display_order == [1, 0] for row in asked.store.rankings(["human"]))


def test_sides_are_drawn_anew_for_every_view_and_evenly(asking: Asking) -> None:
    asked = service(asking(1, labels_per_pair=99))
    left = Counter(asked.tasks(f"annotator {number}")[0].texts[0] for number in range(99))
    assert set(left) == {"first 0", "second, longer 0"}
    assert 20 < left["first 0"] < 79  # 6 standard deviations of a fair coin


def test_a_task_says_nothing_but_texts(asking: Asking, make_item: MakeItem) -> None:
    store = asking(0)
    item = make_item(0, ("One.<|im_end|>", "<s>Two, and it goes o"))
    store.ask([QueueEntry(name, "random", 1.0) for name in store.add_items([item])])
    (task,) = service(store).tasks("ann")
    assert set(task.texts) == {"One.⟨token⟩ 0", "Two, and it goes o 0"}
    assert vars(task).keys() == {"token", "prompt", "texts", "reasonings", "wants_rationale", "practice"}
    assert not any(task.reasonings)


# ---- One press, one label ---------------------------------------------------------------------------------------


def test_a_press_that_is_sent_twice_is_one_label_and_gets_the_stored_answer(asking: Asking) -> None:
    asked = service(asking(5))
    task = asked.tasks("ann")[0]
    once = asked.label("ann", Judgement("press-0001", task.token, "b_much", seconds=2.5))
    again = asked.label("ann", Judgement("press-0001", task.token, "a"))
    assert again == once and once.label.choice == "b_much"
    assert len(events(asked.store)) == 1


def test_every_choice_is_stored_as_what_it_means(asking: Asking) -> None:
    asked = service(asking(len(GRADED)))
    for choice in GRADED:
        assert say(asked, "ann", choice).label.choice == choice
    rows = events(asked.store)
    assert [row.strength for row in rows] == [3, 2, 1, None, 1, 2, 3, None, None, None]
    assert [row.both_bad for row in rows] == [False] * 7 + [True, False, False]
    assert [row.kind for row in rows] == ["label"] * 8 + ["skip", "flag"]
    for row in rows[:3]:
        assert row.tiers[0] == [row.first_shown]
    strict = [row for row in rows if row.kind == "label" and len(row.tiers) == 2]
    assert all(row.chose_longer == (row.tiers[0] == [1]) for row in strict)
    assert {row.words for row in rows} == {2 + 2 + 3}


def test_an_answered_token_takes_no_second_answer(asking: Asking) -> None:
    asked = service(asking(5))
    task = asked.tasks("ann")[0]
    say(asked, "ann", "a", task)
    with pytest.raises(StaleToken):
        asked.label("ann", Judgement("press-0002", task.token, "b"))
    assert len(events(asked.store)) == 1


def test_nobody_can_answer_with_somebody_elses_token_or_request(asking: Asking) -> None:
    asked = service(asking(5))
    task = asked.tasks("ann")[0]
    with pytest.raises(StaleToken):
        asked.label("bob", Judgement("press-0001", task.token, "a"))
    asked.label("ann", Judgement("press-0001", task.token, "a"))
    with pytest.raises(StaleToken):
        asked.label("bob", Judgement("press-0001", asked.tasks("bob")[0].token, "a"))
    assert [row.annotator for row in events(asked.store)] == ["ann"]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"choice": "left"}, "choice: expected one of a_much, a, .* found 'left'"),
        ({"choice": None}, "either a choice or an order"),
        ({"order": [[0], [1]]}, "either a choice or an order"),
        ({"choice": None, "order": [[0], [1]]}, "a pair takes a choice"),
        ({"note": "x" * 20_001}, "at most 20000 characters"),
        ({"note": "a\0b"}, "NUL"),
        ({"note": "\ud800"}, "surrogate"),
        ({"seconds": -1.0}, "seconds"),
        ({"seconds": float("nan")}, "seconds"),
        ({"device": "mind"}, "device: expected one of key"),
        ({"criteria": {"kind": "a"}}, "'kind' is not one of"),
        ({"criteria": {"helpful": "left"}}, "helpful: expected a, b or tie"),
        ({"client_uuid": "short"}, "client_uuid"),
        ({"client_uuid": "with a space"}, "client_uuid"),
    ],
)
def test_a_bad_answer_is_refused_with_its_reason_and_changes_nothing(
    asking: Asking, answer: dict[str, Any], problem: str
) -> None:
    asked = service(asking(2), criteria=("helpful",))
    before = asked.work("ann")
    with pytest.raises(BadJudgement, match=problem):
        asked.label(
            "ann", Judgement(**{"client_uuid": "press-0001", "token": before.tasks[0].token, "choice": "a"} | answer)
        )
    assert events(asked.store) == [] and asked.work("ann") == before


def test_the_plain_scale_knows_no_strengths(asking: Asking) -> None:
    asked = service(asking(2), scale="plain")
    with pytest.raises(BadJudgement, match="expected one of a, tie, b, both_bad"):
        say(asked, "ann", "a_much")
    say(asked, "ann", "b")
    assert [row.strength for row in events(asked.store)] == [None]


def test_criteria_are_stored_with_the_sides_undone(asking: Asking) -> None:
    asked = service(asking(1), criteria=("helpful", "honest", "harmless"))
    task = asked.tasks("ann")[0]
    first = next(i for i, text in enumerate(task.texts) if text.startswith("first"))
    criteria = {"helpful": "ab"[first], "honest": "ab"[1 - first], "harmless": "tie"}
    say(asked, "ann", "tie", task, criteria=criteria)
    assert events(asked.store)[0].criteria == {"helpful": 0, "honest": 1, "harmless": None}


def test_a_reason_that_is_asked_for_has_to_be_given_except_to_skip(asking: Asking) -> None:
    asked = service(asking(2), rationale_share=1.0)
    tasks = asked.tasks("ann")
    assert all(task.wants_rationale for task in tasks)
    with pytest.raises(BadJudgement, match="reason"):
        say(asked, "ann", "a", tasks[0], note=" ")
    say(asked, "ann", "a", tasks[0], note="It is kinder.")
    say(asked, "ann", "skip", tasks[1])
    assert [row.note for row in events(asked.store)] == ["It is kinder.", None]


def test_a_ranking_is_stored_whole_with_its_ties(asking: Asking) -> None:
    asked = service(asking(1, answers=("w", "x", "y", "z")))
    (task,) = asked.tasks("ann")
    for order in ([[0], [1], [2]], [[0], [0, 1, 2, 3]], [[0, 1], [], [2, 3]], [[0], [1], [2], [4]]):
        with pytest.raises(BadJudgement, match="does not place each of 4 answers once"):
            asked.label("ann", Judgement("press-0001", task.token, order=order))
    with pytest.raises(BadJudgement, match="expected one of skip, flag"):
        say(asked, "ann", "a", task)
    done = asked.label("ann", Judgement("press-0001", task.token, order=[[3], [0, 2], [1]]))
    assert done.label.order == [[3], [0, 2], [1]]
    (ranking,) = asked.store.rankings(["human"])
    said = [sorted(ranking.completions[i] for i in tier) for tier in ranking.tiers]
    assert said == [[task.texts[3]], sorted([task.texts[0], task.texts[2]]), [task.texts[1]]]


def test_an_ideal_answer_is_kept_beside_the_label_and_a_later_one_replaces_it(asking: Asking) -> None:
    asked = service(asking(2))
    task = asked.tasks("ann")[0]
    for _ in range(2):
        asked.demonstrate("ann", IdealCompletion("ideal-0001", task.token, "Freeze it."))
    asked.demonstrate("ann", IdealCompletion("ideal-0002", task.token, "Freeze it in slices."))
    assert say(asked, "ann", "a", task).label.kind == "label"
    (row,) = asked.store.ideals()
    assert row.prompt[-1].content == "question 0" and row.completions[0] == "Freeze it in slices."
    assert sorted(row.completions[1:]) == sorted(task.texts) and row.tiers == [[0], [1, 2]]
    assert row.annotator == "ann" and len(events(asked.store, "demonstration")) == 2
    with pytest.raises(BadJudgement, match="found nothing"):
        asked.demonstrate("ann", IdealCompletion("ideal-0003", task.token, " "))
    with pytest.raises(BadJudgement, match="used for another request"):
        asked.label("ann", Judgement("ideal-0001", asked.tasks("ann")[0].token, "a"))


# ---- Undo -------------------------------------------------------------------------------------------------------


def test_undo_takes_back_the_last_answer_and_shows_it_first_with_the_same_sides(asking: Asking) -> None:
    asked = service(asking(5))
    first, second, *_ = asked.tasks("ann")
    say(asked, "ann", "a", first)
    say(asked, "ann", "b", second)
    done = asked.undo("ann", "undo-0001")
    assert done.undone and done.tasks[0].texts == second.texts and done.tasks[0].token != second.token
    again = asked.undo("ann", "undo-0002")
    assert [task.texts for task in again.tasks[:2]] == [first.texts, second.texts]
    assert again.progress.mine == 0 and asked.store.rankings(["human"]) == []
    assert [row.kind for row in events(asked.store)] == ["label", "label", "undo", "undo"]
    say(asked, "ann", "tie", again.tasks[0])
    assert asked.tasks("ann")[0].texts == second.texts
    assert asked.store.rankings(["human"])[0].tiers == [[0, 1]]


def test_undo_walks_back_to_the_beginning_and_touches_nobody_else(asking: Asking) -> None:
    asked = service(asking(5))
    for annotator, choice in (("ann", "a"), ("ann", "skip"), ("bob", "a")):
        say(asked, annotator, choice)
    assert asked.undo("ann", "undo-0001").undone and asked.undo("ann", "undo-0002").undone
    assert asked.undo("ann", "undo-0003").undone is False
    assert [row.annotator for row in asked.store.rankings(["human"])] == ["bob"]


def test_an_undo_that_is_sent_twice_takes_back_one_label(asking: Asking) -> None:
    asked = service(asking(5))
    say(asked, "ann")
    say(asked, "ann")
    assert asked.undo("ann", "undo-0001") == asked.undo("ann", "undo-0001")
    assert len(asked.store.rankings(["human"])) == 1


def test_what_one_tab_took_back_no_late_or_repeated_press_of_another_tab_brings_back(asking: Asking) -> None:
    asked = service(asking(3))
    task = asked.tasks("ann")[0]
    press = Judgement("press-0001", task.token, "a_much")
    asked.label("ann", press)
    again = asked.undo("ann", "undo-0001").tasks[0]
    assert asked.label("ann", press).label.choice == "a_much", "what was stored is said"
    with pytest.raises(StaleToken):
        asked.label("ann", Judgement("press-0002", task.token, "b_much"))
    assert asked.store.rankings(["human"]) == [] and [row.kind for row in events(asked.store)] == ["label", "undo"]
    asked.label("ann", Judgement("press-0003", again.token, "tie"))
    for late in (press, Judgement("press-0001", again.token, "b")):
        asked.label("ann", late)
    with pytest.raises(StaleToken):
        asked.label("ann", Judgement("press-0004", task.token, "a"))
    assert [row.tiers for row in asked.store.rankings(["human"])] == [[[0, 1]]]


def test_an_undo_that_found_nothing_takes_back_nothing_when_it_is_sent_again(asking: Asking) -> None:
    asked = service(asking(3))
    assert asked.undo("ann", "undo-0001").undone is False
    say(asked, "ann")
    for server in (asked, service(asked.store)):  # another one, or the same after a restart
        assert server.undo("ann", "undo-0001").undone is False and len(asked.store.rankings(["human"])) == 1
    assert asked.undo("bob", "undo-0001").undone is False
    assert asked.undo("ann", "undo-0002").undone is True


def test_a_skip_that_is_taken_back_comes_again_unless_somebody_took_the_pair(asking: Asking) -> None:
    asked = service(asking(1))
    shown = asked.tasks("ann")
    say(asked, "ann", "skip")
    assert texts(asked.undo("ann", "undo-0001").tasks) == texts(shown)
    say(asked, "ann", "skip")
    say(asked, "bob", "a")
    done = asked.undo("ann", "undo-0002")
    assert done.undone and done.tasks == [] and done.progress.skipped == 0
    assert states(asked.store) == {"filled": 1}


# ---- Who gets what ----------------------------------------------------------------------------------------------


def test_so_many_tasks_wait_and_stay_the_same_until_they_are_answered(asking: Asking) -> None:
    asked = service(asking(9))
    tasks = asked.tasks("ann")
    assert len(tasks) == AHEAD and asked.tasks("ann") == tasks
    done = say(asked, "ann", "a", tasks[1])  # any of them may be answered
    assert done.tasks[: AHEAD - 1] == [tasks[0], tasks[2]] and len(done.tasks) == AHEAD


def test_one_slot_is_one_persons(asking: Asking) -> None:
    asked = service(asking(2 * AHEAD))
    mine, theirs = asked.tasks("ann"), asked.tasks("bob")
    assert not any(text in texts(mine) for text in texts(theirs))
    assert asked.tasks("cem") == [] and asked.work("cem").state == "done"


def test_a_skipped_pair_goes_to_others_and_never_comes_back(asking: Asking) -> None:
    asked = service(asking(1))
    assert asked.tasks("bob") != []
    expire(asked.store, "bob")
    for number, (annotator, choice) in enumerate([("ann", "skip"), ("cem", "flag")], start=1):
        work = say(asked, annotator, choice, note="broken")
        assert work.tasks == [] and work.state == "done" and work.progress.skipped == 1
        assert asked.store.counts()[0] == 0 and len(events(asked.store)) == number
    assert say(asked, "dee", "a").progress.mine == 1 == asked.store.counts()[0]
    assert [(row.kind, row.note) for row in events(asked.store)[:2]] == [("skip", "broken"), ("flag", "broken")]


def test_overlap_is_collected_from_different_people_and_no_more_of_it(asking: Asking) -> None:
    asked = service(asking(4, labels_per_pair=2))
    for annotator in ("ann", "bob", "cem"):
        while tasks := asked.tasks(annotator):
            say(asked, annotator, "a", tasks[0])
    rows = asked.store.rankings(["human"])
    assert Counter(row.prompt_id for row in rows) == {row.prompt_id: 2 for row in rows} and len(rows) == 8
    assert {row.annotator for row in rows} == {"ann", "bob"} and states(asked.store) == {"filled": 8}
    assert asked.store.counts()[:2] == (8, 8)


def test_a_lease_that_ran_out_goes_to_others_and_what_comes_late_is_kept_and_not_counted(asking: Asking) -> None:
    asked = service(asking(1))
    (task,) = asked.tasks("ann")
    assert asked.tasks("bob") == []
    expire(asked.store, "ann")
    taken = asked.tasks("bob")
    assert texts(taken) == texts([task])
    assert say(asked, "ann", "a", task).label.kind == "late"
    assert say(asked, "bob", "b", taken[0]).label.kind == "label"
    assert [row.annotator for row in asked.store.rankings(["human"])] == ["bob"]
    assert asked.progress("ann").mine == 0 and states(asked.store) == {"filled": 1}
    assert asked.store.answered("human", list(asked.store.asked())).popitem()[1] == ["late", "label"]


def test_a_late_answer_counts_as_long_as_nobody_took_the_pair(asking: Asking) -> None:
    asked = service(asking(1))
    (task,) = asked.tasks("ann")
    expire(asked.store, "ann")
    assert say(asked, "ann", "a", task).label.kind == "label"
    assert states(asked.store) == {"filled": 1}


def test_a_lost_pair_is_no_task_any_more_and_may_come_again(asking: Asking) -> None:
    asked = service(asking(1))
    asked.tasks("ann")
    expire(asked.store, "ann")
    (taken,) = asked.tasks("bob")
    assert asked.tasks("ann") == []
    say(asked, "bob", "skip", taken)
    assert len(asked.tasks("ann")) == 1


def test_a_sign_of_life_keeps_the_lease(asking: Asking) -> None:
    asked = service(asking(1))
    asked.tasks("ann")
    expire(asked.store, "ann")
    asked.renew("ann")
    assert asked.tasks("bob") == []


def test_people_are_asked_only_about_the_current_queue(asking: Asking, make_item: MakeItem) -> None:
    store = asking(5)
    asked = service(store)
    say(asked, "ann")
    stale = asked.tasks("ann")[0]
    store.ask([QueueEntry(name, "random", 1.0) for name in store.add_items([make_item(9)])])
    assert texts(asked.tasks("ann")) == [{"first 9", "second, longer 9"}]
    with pytest.raises(StaleToken):
        say(asked, "ann", "a", stale)
    assert len(store.rankings(["human"])) == 1, "labels about earlier answers stay in the store"


# ---- Hidden checks ----------------------------------------------------------------------------------------------


def test_one_finds_ones_own_pair_again_after_a_while_with_the_sides_swapped(
    asking: Asking,
) -> None:
    asked = service(asking(30), repeat_share=0.5, repeat_after=4)
    say(asked, "bob", "a")
    shown, order = {}, []
    for _ in range(40):
        tasks = asked.tasks("ann")
        if not tasks:
            break
        shown[tasks[0].token] = tasks[0].texts
        order.append(tasks[0].token)
        say(asked, "ann", "a", tasks[0])
    with asked.store.read() as db:
        repeats = list(db.execute(sa.select(view).where(view.c.purpose == "repeat")))
    assert repeats and len({row.repeats for row in repeats}) == len(repeats)
    for row in repeats:
        if row.token in shown:
            assert shown[row.token] == shown[row.repeats][::-1] and row.annotator == "ann"
            assert order.index(row.token) - order.index(row.repeats) > 4
    labelled = {row.label_id for row in asked.store.rankings(["human"])}
    assert labelled.isdisjoint(f"ann-{row.token}" for row in repeats), "a repeat is a measurement, and no label"
    assert asked.progress("ann").mine == len(order), "a repeat counts like any other pair"


def test_hidden_gold_comes_once_counts_as_no_label_and_is_compared(asking: Asking, make_item: MakeItem) -> None:
    store = asking(30)
    names = store.add_items([make_item(100 + i, ("right", "wrong")) for i in range(3)])
    store.set_gold("check", [Gold(name, [[0], [1]]) for name in names])
    asked = service(store, gold_share=0.5)
    seen: list[set[str]] = []
    while tasks := asked.tasks("ann"):
        assert asked.progress("ann").mine == len(seen), "a check counts like any other pair"
        seen += texts(tasks[:1])
        right = next((i for i, text in enumerate(tasks[0].texts) if text.startswith("right")), 0)
        assert say(asked, "ann", "ab"[right], tasks[0]).feedback is None
    assert sum("right 100" in one for one in seen) == 1 and len(seen) == 33
    assert len(store.rankings(["human"])) == 30 and asked.progress("ann").mine == 33
    assert store.checks() == {"ann": [([[0], [1]], [[0], [1]])] * 3}


def practising(asking: Asking, make_item: MakeItem) -> LabelService:
    store = asking(5)
    names = store.add_items([make_item(100 + i, ("right", "wrong")) for i in range(4)])
    store.set_gold("qualification", [Gold(name, [[0], [1]], "Because it is.") for name in names])
    return service(store, qualification_pass=0.75)


def practise(asked: LabelService, annotator: str, right: int) -> list[Recorded[Task]]:
    done = []
    for number in range(4):
        task = asked.tasks(annotator)[0]
        assert task.practice and asked.work(annotator).state == "practice"
        place = next(i for i, text in enumerate(task.texts) if text.startswith("right"))
        done.append(say(asked, annotator, "ab"[place if number < right else 1 - place], task))
    return done


def test_who_passes_the_qualification_round_is_told_why_and_goes_on_to_work(
    asking: Asking, make_item: MakeItem
) -> None:
    asked = practising(asking, make_item)
    done = practise(asked, "ann", right=3)
    feedback = [one.feedback for one in done]
    assert all(one is not None and one.explanation == "Because it is." for one in feedback)
    assert [one.right for one in feedback if one] == [True, True, True, False]
    assert done[2].progress.practice is not None and done[2].progress.practice.done == 3
    assert done[3].state == "work" and not any(task.practice for task in done[3].tasks)
    assert asked.store.rankings(["human"]) == [] and asked.progress("ann").practice is None
    assert asked.undo("ann", "undo-0001").undone is False, "the feedback was given"
    assert LabelService(asked.store, asked.settings).work("ann").state == "work"


def test_who_fails_the_qualification_round_gets_no_work(asking: Asking, make_item: MakeItem) -> None:
    asked = practising(asking, make_item)
    last = practise(asked, "ann", right=2)[-1]
    assert last.state == "failed_practice" and last.tasks == []
    assert last.progress.practice is not None and last.progress.practice.right == 2
    assert LabelService(asked.store, asked.settings).work("ann").state == "failed_practice"
    assert states(asked.store) == {"open": 5}


# ---- Many at once -----------------------------------------------------------------------------------------------


def at_once(work: Callable[[str], None], names: list[str]) -> None:
    problems: list[BaseException] = []

    def run(name: str) -> None:
        try:
            work(name)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_concurrent_annotators_lose_and_duplicate_nothing(asking: Asking) -> None:
    asked = service(asking(40))
    acknowledged: list[str] = []

    def work(name: str) -> None:
        while tasks := asked.tasks(name):
            acknowledged.append(say(asked, name, "a", tasks[0]).label.client_uuid)

    at_once(work, [f"annotator {i}".replace(" ", "-") for i in range(8)])
    stored = Counter(row.client_uuid for row in events(asked.store))
    assert stored == Counter(acknowledged) and len(stored) == 40
    assert len({row.prompt_id for row in asked.store.rankings(["human"])}) == 40
    assert asked.store.counts()[0] == 40


def test_a_race_for_the_last_slot_has_one_winner(asking: Asking) -> None:
    asked = service(asking(1, labels_per_pair=2))
    start = threading.Barrier(12)
    got: list[str] = []

    def work(name: str) -> None:
        start.wait()
        if tasks := asked.tasks(name):
            got.append(name)
            say(asked, name, "a", tasks[0])

    at_once(work, [f"annotator-{i}" for i in range(12)])
    assert len(got) == 2 == len(asked.store.rankings(["human"])) and states(asked.store) == {"filled": 2}


def test_two_tabs_hold_no_more_than_one(asking: Asking) -> None:
    asked = service(asking(30))
    start = threading.Barrier(8)
    seen: list[list[Task]] = []

    def work(_: str) -> None:
        start.wait()
        seen.append(asked.tasks("ann"))

    at_once(work, [f"tab-{i}" for i in range(8)])
    assert all(tasks == seen[0] for tasks in seen) and states(asked.store)["leased"] == AHEAD


def test_the_same_press_from_two_tabs_at_once_is_one_label(asking: Asking) -> None:
    asked = service(asking(5))
    task = asked.tasks("ann")[0]
    start = threading.Barrier(8)
    said: list[Any] = []

    def work(_: str) -> None:
        start.wait()
        said.append(asked.label("ann", Judgement("press-0001", task.token, "b")).label)

    at_once(work, [f"tab-{i}" for i in range(8)])
    assert len(events(asked.store)) == 1 and all(one == said[0] for one in said)


WRITER = """
import sys
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tasks import Judgement
asked = LabelService(Store(sys.argv[1]))
while tasks := asked.tasks("ann"):
    print(asked.label("ann", Judgement("ann-" + tasks[0].token, tasks[0].token, "a")).label.client_uuid, flush=True)
"""


@pytest.mark.parametrize("acknowledged", [3, 25])
def test_kill_9_in_a_burst_loses_no_acknowledged_label(asking: Asking, acknowledged: int) -> None:
    store = asking(1000)
    url = store.url.render_as_string(hide_password=False)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    seen = [writer.stdout.readline().strip() for _ in range(acknowledged)]
    os.kill(writer.pid, signal.SIGKILL)
    seen += [line.strip() for line in writer.stdout if line.endswith("\n")]
    writer.wait()
    kept = Counter(row.client_uuid for row in events(Store(url)))
    assert set(seen) <= set(kept) and max(kept.values()) == 1
    assert len(kept) <= len(seen) + 1, "at most the label in flight was written and not confirmed"
    assert states(store)["filled"] == len(kept)
    assert service(store).tasks("ann") != []


# ---- While the queue grows --------------------------------------------------------------------------------------


def test_who_is_faster_than_the_sampler_waits_and_goes_on(asking: Asking, make_item: MakeItem) -> None:
    store = asking(2)
    ids = store.add_items([make_item(i) for i in range(4)])
    queue = [QueueEntry(name, "random", 1.0) for name in ids]
    store.ask(queue[:2], expected=4)
    asked = service(store)
    asked.grows = True
    say(asked, "ann")
    waiting = say(asked, "ann")
    assert (waiting.state, waiting.tasks, waiting.progress.left) == ("waiting", [], 2)
    store.ask_more(queue[2:3], 1)
    assert [asked.work("ann").state, len(asked.tasks("ann"))] == ["work", 1]
    assert say(asked, "ann").state == "waiting"
    store.ask(queue[::-1])  # the last one comes before those that were there
    asked.complete()
    assert asked.work("ann").state == "work" and say(asked, "ann").state == "done"
    assert len(store.rankings(["human"])) == 4


def test_no_hidden_check_comes_while_there_is_no_pair_to_hide_it_among(asking: Asking, make_item: MakeItem) -> None:
    store = asking(1)
    known = store.add_items([make_item(i) for i in range(50, 60)])
    store.set_gold("check", [Gold(name, [[0], [1]]) for name in known])
    store.ask([QueueEntry(name, "random", 1.0) for name in store.asked()], expected=30)
    asked = service(store, gold_share=0.5)
    asked.grows = True
    work = asked.work("ann")
    while work.tasks:
        work = say(asked, "ann", task=work.tasks[0])
    assert work.state == "waiting" and len(events(store, "label")) < 10
    before = len(events(store))
    assert all(asked.work("ann").tasks == [] for _ in range(30)) and len(events(store)) == before


def test_what_is_left_does_not_move_with_each_prompt_that_is_answered(asking: Asking, make_item: MakeItem) -> None:
    store = asking(1)
    ids = store.add_items([make_item(i) for i in range(19)])
    queue = [QueueEntry(name, "random", 1.0) for name in ids]
    store.ask(queue[:4], expected=19)
    asked = service(store)
    asked.grows = True
    left = [asked.work("ann").progress.left]
    for entry in queue[4:]:
        store.ask_more([entry], 1)
        left.append(say(asked, "ann").progress.left)
    assert left == list(range(19, 3, -1))
