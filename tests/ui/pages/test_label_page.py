"""The labelling page in a real browser: one key is one label, none is lost, nothing says whose answer it is, and
everybody can use it."""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from looking import Answering, intercept

from trueup.data.records import Message, prompt_id
from trueup.data.visible import seen
from trueup.pages.worddiff import MAX_WORDS, word_diff
from ui.app import label_app
from ui.labels.items import QueueEntry
from ui.labels.tables import event, item
from ui.people.accounts import COOKIE

pytestmark = pytest.mark.browser

FIRST, SECOND = "Wrap loaf {} in a cloth.", "Freeze loaf {} in slices, so that it keeps."


class Labelling(Answering):
    """A page that is open on the labelling of a campaign."""

    def __init__(self, context: Any, url: str, store: Any):
        self.store = store
        super().__init__(context, url, "/label")

    def shown(self) -> None:
        """Until the pair on screen takes presses."""
        self.page.wait_for_selector(".tu-label[data-state=ready], .tu-label[data-state=done]")

    def do(self, name: str) -> Any:
        return self.page.locator(f"[data-do={name}]")

    def events(self, kind: str | None = None) -> list[Any]:
        with self.store.read() as db:
            query = sa.select(event, item.c.completions).join(item, item.c.item_id == event.c.item_id)
            rows = db.execute(query.order_by(event.c.event_id)).all()
        return [row for row in rows if kind in (None, row.kind)]

    def chosen(self) -> list[str]:
        """The preferred text of each label that stands."""
        gone = {row.supersedes for row in self.events()}
        labels = [row for row in self.events("label") if row.event_id not in gone]
        return [row.completions[row.tiers[0][0]]["text"] for row in labels]


@pytest.fixture
def rows(answers_to: Any) -> Callable[[int], list[Any]]:
    def make(number: int) -> list[Any]:
        return [answers_to(f"Question {i}?", [FIRST.format(i), SECOND.format(i)]) for i in range(number)]

    return make


@pytest.fixture
def start(campaign: Any, serve: Any) -> Callable[..., Any]:
    """`start(rows, scale="plain")` serves the labelling of these answers: the application, with its `url`."""

    def start(sampled: list[Any], **config: Any) -> Any:
        campaign.sampled(sampled, seed=1)
        app = label_app(campaign.label(**{"gold_share": 0, "repeat_share": 0, **config}))
        app.state.url = serve(app)
        return app

    return start


@pytest.fixture
def visit(context: Any) -> Callable[..., Labelling]:
    """Opens the page of an application, as the person at this machine."""

    def visit(app: Any, inside: Any = None) -> Labelling:
        cookie = {"name": COOKIE, "value": app.state.people.open_session(None), "url": app.state.url}
        (inside or context).add_cookies([cookie])
        return Labelling(inside or context, app.state.url, app.state.service.store)

    return visit


@pytest.fixture
def labelling(start: Any, visit: Any, rows: Any) -> Labelling:
    """Twelve pairs on the graded scale."""
    return visit(start(rows(12)))


# ---- One key, one label -----------------------------------------------------------------------------------------


def test_reasoning_is_folded_above_its_answer_and_is_no_part_of_it(
    start: Any, visit: Any, rows: Any, serious: Any
) -> None:
    thoughts = "<think>\nBread goes stale. <b>Hm</b>" + "\nMore." * 60 + "\n</think>\n\n"
    sampled = [
        row.model_copy(
            update={"candidates": [one.model_copy(update={"reasoning": thoughts}) for one in row.candidates]}
        )
        for row in rows(3)[:2]
    ]
    labelling = visit(start([*sampled, rows(3)[2]], scale="plain"))
    folds = labelling.page.locator(".tu-reasoning")
    shown = []
    for _ in range(3):
        text, before = labelling.texts[0], len(labelling.events())
        assert "stale" not in text and labelling.page.locator(".tu-reasoning[open]").count() == 0
        shown.append(folds.first.is_visible())
        if shown[-1]:
            assert folds.first.locator("summary").inner_text().endswith("Reasoning, 64 words")
            folds.first.locator("summary").press("Enter")
            assert folds.first.locator("div").inner_text().startswith("Bread goes stale. <b>Hm</b>\nMore.")
            assert serious(labelling.page) == []
            assert len(labelling.events()) == before, "to open it is no label"
        labelling.press("1")
    assert sorted(shown) == [False, True, True], "an answer without reasoning has no fold"
    assert len(labelling.chosen()) == 3 and not any("stale" in text for text in labelling.chosen())


def test_each_key_is_one_graded_label_of_the_answer_on_that_side(labelling: Labelling) -> None:
    graded = [("1", 0, 3), ("2", 0, 2), ("3", 0, 1), ("5", 1, 1), ("6", 1, 2), ("7", 1, 3)]
    for number, (key, place, strength) in enumerate(graded, start=1):
        preferred, before = labelling.texts[place], labelling.texts
        labelling.press(key)
        said = labelling.events()[-1]
        assert len(labelling.events()) == number and (said.strength, said.both_bad) == (strength, False)
        assert labelling.chosen()[-1] == preferred and said.device == "key"
        assert labelling.texts != before and labelling.words("count") == f"{number} of 12 labelled"
    labelling.press("4", "0")
    equal, bad = labelling.events()[-2:]
    assert [equal.tiers, equal.both_bad, bad.tiers, bad.both_bad] == [[[0, 1]], False, [[0, 1]], True]
    assert labelling.words("saved") == "Saved" and labelling.problems == []
    assert all(row.seconds > 0 for row in labelling.events())


def test_the_plain_scale_has_three_answers_by_key_and_by_click(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(5), scale="plain"))
    wanted = [labelling.texts[0]]
    labelling.press("1")
    wanted.append(labelling.texts[1])
    labelling.press("2")
    labelling.press("t")
    wanted.append(labelling.texts[1])
    labelling.page.get_by_role("button", name="B is better").click()
    labelling.settle()
    assert labelling.events()[2].tiers == [[0, 1]]
    assert [text for i, text in enumerate(labelling.chosen()) if i != 2] == wanted
    assert {row.strength for row in labelling.events()} == {None} and labelling.events()[-1].device == "click"


def test_the_next_pair_is_there_before_the_server_has_answered(labelling: Labelling) -> None:
    held: list[Any] = []
    intercept(labelling.page, "**/api/v1/labels", lambda route: held.append(route), times=1)
    seen = [labelling.texts]
    for _ in range(2):  # three tasks are in the browser
        labelling.page.keyboard.press("2")
        labelling.shown()
        seen.append(labelling.texts)
    assert len({tuple(texts) for texts in seen}) == 3 and labelling.events() == []
    held[0].continue_()
    labelling.settle()
    assert len(labelling.events()) == 2


def test_a_key_held_down_labels_once(labelling: Labelling) -> None:
    for _ in range(6):
        labelling.page.keyboard.down("2")  # without a key up in between: the operating system's repeat
    labelling.page.keyboard.up("2")
    labelling.settle()
    labelling.do("a").focus()
    for _ in range(4):
        labelling.page.keyboard.down("Enter")
    labelling.page.keyboard.up("Enter")
    labelling.settle()
    assert len(labelling.events()) == 2


def test_a_double_click_labels_once_and_a_press_on_a_pair_that_just_came_is_refused_aloud(labelling: Labelling) -> None:
    labelling.do("a").dblclick()
    labelling.settle()
    assert len(labelling.events()) == 1 and "Not counted" in labelling.words("say")
    labelling.page.evaluate(
        """() => { for (const key of ["2", "6"]) document.body.dispatchEvent(new KeyboardEvent("keydown",
           { key, code: `Digit${key}`, bubbles: true })); }"""
    )
    assert labelling.words("say") == "Not counted: this pair has only just come"
    labelling.settle()
    assert len(labelling.events()) == 2


def test_skip_and_flag_take_the_note_along_and_undo_walks_back_over_all_of_it(labelling: Labelling) -> None:
    pairs = [labelling.texts]
    labelling.press("2")
    pairs.append(labelling.texts)
    labelling.press("s")
    pairs.append(labelling.texts)
    labelling.page.keyboard.press("n")
    labelling.page.keyboard.type("a phone number: 1 2 3 s u f")
    labelling.page.keyboard.press("Enter")
    assert len(labelling.events()) == 2
    labelling.press("f")
    assert [row.kind for row in labelling.events()] == ["label", "skip", "flag"]
    assert labelling.events()[-1].note == "a phone number: 1 2 3 s u f"
    assert labelling.words("count") == "1 of 12 labelled, 2 skipped"
    for before in reversed(pairs):
        labelling.press("u")
        assert labelling.texts == before
    assert labelling.chosen() == [] and labelling.words("count") == "0 of 12 labelled"
    labelling.press("u")
    assert labelling.words("say") == "Nothing to undo" and labelling.texts == pairs[0]
    labelling.press("6")
    assert labelling.chosen() == [pairs[0][1]]


def test_a_reload_shows_the_same_pair_and_the_progress(labelling: Labelling) -> None:
    labelling.press("1", "s")
    before = labelling.texts
    labelling.open()
    assert labelling.texts == before and labelling.words("count") == "1 of 12 labelled, 1 skipped"


def test_all_done_is_said_and_the_last_label_can_still_be_taken_back(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(2)))
    labelling.press("1")
    last = labelling.texts
    labelling.press("7")
    heading = labelling.page.get_by_role("heading", name="All pairs are labelled")
    assert heading.is_visible() and labelling.do("a").is_disabled()
    labelling.open()
    assert heading.is_visible()
    labelling.press("u")
    assert labelling.texts == last and labelling.do("a").is_enabled()


def test_who_has_no_pair_yet_is_told_so_and_the_page_goes_on_by_itself(
    start: Any, visit: Any, rows: Any, make_item: Any
) -> None:
    app = start(rows(1))
    store, app.state.service.grows = app.state.service.store, True
    labelling = visit(app)
    labelling.press("1")
    assert labelling.page.get_by_role("heading", name="The next pair is on its way").is_visible()
    store.ask_more([QueueEntry(name, "random", 1.0) for name in store.add_items([make_item(1)])], 1)
    labelling.page.wait_for_selector(".tu-label[data-state=ready]", timeout=10_000)
    assert set(labelling.texts) == {"first 1", "second, longer 1"}
    labelling.press("1")
    app.state.service.complete()
    labelling.page.get_by_role("heading", name="All pairs are labelled").wait_for(timeout=10_000)
    assert len(labelling.events()) == 2 and labelling.problems == []


# ---- Nothing is lost --------------------------------------------------------------------------------------------


def test_presses_without_a_connection_wait_in_sight_and_arrive_once_and_in_order(
    labelling: Labelling, context: Any
) -> None:
    context.set_offline(True)
    wanted = []
    for number, (key, place) in enumerate([("1", 0), ("6", 1), ("3", 0)], start=1):
        wanted.append(labelling.texts[place])
        labelling.page.keyboard.press(key)
        labelling.shown()
        many = f"{number} label{'s' if number > 1 else ''} waiting, kept on this computer"
        labelling.page.get_by_text(many).wait_for()
    assert labelling.page.get_by_role("heading", name="Waiting for the connection").is_visible()
    assert labelling.events() == []
    context.set_offline(False)
    labelling.settle()
    assert labelling.chosen() == wanted and [row.strength for row in labelling.events()] == [3, 2, 1]
    assert len({row.client_uuid for row in labelling.events()}) == 3
    labelling.press("2")
    assert len(labelling.events()) == 4


def test_a_label_that_was_not_sent_yet_is_taken_back_here_and_never_sent(labelling: Labelling, context: Any) -> None:
    context.set_offline(True)
    labelling.page.keyboard.press("1")
    labelling.page.get_by_text("1 label waiting").wait_for()
    second = labelling.texts
    labelling.shown()
    labelling.page.keyboard.press("7")
    labelling.shown()
    labelling.page.keyboard.press("u")
    labelling.shown()
    assert labelling.texts == second and labelling.words("count") == "1 of 12 labelled"
    assert labelling.words("say") == "Taken back: B much better"
    context.set_offline(False)
    labelling.settle()
    assert [row.strength for row in labelling.events()] == [3]
    labelling.press("5")
    assert [row.strength for row in labelling.events()] == [3, 1]


def test_what_a_closed_page_had_not_sent_is_sent_by_the_next(labelling: Labelling, context: Any, visit: Any) -> None:
    intercept(labelling.page, "**/api/v1/labels", lambda route: route.abort())
    preferred = labelling.texts[1]
    labelling.page.keyboard.press("6")
    labelling.page.get_by_text("1 label waiting, kept on this computer").wait_for()
    labelling.page.close()
    assert labelling.events() == []
    again = Labelling(context, labelling.url, labelling.store)
    assert again.chosen() == [preferred] and again.words("count") == "1 of 12 labelled"
    assert preferred not in again.texts


def test_a_lost_confirmation_makes_no_second_label(labelling: Labelling) -> None:
    """The server writes the label, the answer is lost, the browser sends the press again."""
    lost: list[int] = []

    def lose_first(route: Any) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    intercept(labelling.page, "**/api/v1/labels", lose_first)
    labelling.press("1")
    assert lost == [200] and len(labelling.events()) == 1


def test_of_two_windows_on_one_pair_the_second_press_is_refused_aloud(labelling: Labelling, context: Any) -> None:
    other = Labelling(context, labelling.url, labelling.store)
    assert other.texts == labelling.texts
    labelling.press("1")
    other.press("7")
    assert len(labelling.events()) == 1 and "Not recorded: “B much better”" in other.words("alert")
    assert other.texts == labelling.texts and other.words("count") == "1 of 12 labelled"
    other.press("7")
    assert len(labelling.events()) == 2


def test_presses_are_kept_when_the_session_ends_and_sent_after_the_next_login(
    labelling: Labelling, context: Any, start: Any
) -> None:
    cookie = next(one for one in context.cookies() if one["name"] == COOKIE)
    context.clear_cookies()
    labelling.page.keyboard.press("2")
    alert = labelling.page.get_by_role("alert")
    alert.get_by_text("Your session has ended. Your labels are kept on this computer").wait_for()
    assert alert.get_by_role("link", name="Sign in").get_attribute("href") == "/login?next=/label"
    assert labelling.words("saved") == "1 label waiting, kept on this computer" and labelling.events() == []
    context.add_cookies([cookie])
    labelling.open()
    assert len(labelling.events()) == 1


def test_what_one_person_labelled_is_not_sent_as_somebody_elses(start: Any, visit: Any, rows: Any) -> None:
    app = start(rows(4))
    labelling = visit(app)
    bob = app.state.people.add("Bob", "annotator", "four words are enough")
    account = next(row.account_id for row in app.state.people.accounts() if row.name == bob.name)
    session = app.state.people.open_session(account)
    labelling.context.add_cookies([{"name": COOKIE, "value": session, "url": labelling.url}])
    labelling.page.keyboard.press("2")
    labelling.page.get_by_role("alert").get_by_text("Somebody else has signed in here").wait_for()
    labelling.open()
    assert labelling.events() == [] and labelling.words("count") == "0 of 4 labelled"
    visit(app)
    assert [row.annotator for row in labelling.events()] == ["local"]


# ---- Keys -------------------------------------------------------------------------------------------------------


def test_keys_can_be_changed_switched_off_one_by_one_and_all_together(labelling: Labelling) -> None:
    page = labelling.page
    page.keyboard.press("?")
    page.get_by_role("button", name="A better: 2. Change").click()
    page.keyboard.press("7")
    page.get_by_text("7 is taken by B much better").wait_for()
    page.get_by_role("button", name="A better: 2. Change").click()
    page.keyboard.press("x")
    page.get_by_role("button", name="Skip: switch the key off").click()
    page.keyboard.press("Escape")
    labelling.press("2", "s")
    assert labelling.events() == []
    labelling.press("x")
    assert [row.strength for row in labelling.events()] == [2]
    labelling.open()
    assert labelling.do("a").get_attribute("aria-keyshortcuts") == "X"
    assert labelling.do("skip").get_attribute("aria-keyshortcuts") is None
    page.keyboard.press("?")
    page.get_by_label("Keys", exact=True).uncheck()
    page.keyboard.press("Escape")
    labelling.press("1", "x", "u")
    assert len(labelling.events()) == 1
    labelling.do("b").click()
    labelling.settle()
    labelling.do("help").click()
    page.get_by_role("button", name="Reset all keys").click()
    page.get_by_role("button", name="Close").click()
    labelling.press("2", "s")
    assert [row.kind for row in labelling.events()] == ["label", "label", "label", "skip"]


def test_typing_never_labels(labelling: Labelling) -> None:
    page = labelling.page
    page.keyboard.press("n")
    page.keyboard.type("12s0utf?")
    page.keyboard.press("Escape")
    page.keyboard.press("e")
    page.keyboard.type("1 2 s 0 ufd")
    page.keyboard.press("Escape")
    for combination in ("Control+1", "Alt+1", "Meta+1"):
        page.keyboard.press(combination)
    page.keyboard.press("g")
    page.keyboard.press("1")
    assert labelling.events() == []
    page.keyboard.press("Escape")
    labelling.press("1")
    assert [row.note for row in labelling.events()] == ["12s0utf?"]


def test_a_layout_without_latin_letters_or_digits_uses_the_place_of_the_key(labelling: Labelling) -> None:
    for key, code in (("ы", "KeyS"), ("é", "Digit2")):
        labelling.page.evaluate(
            "([key, code]) => document.body.dispatchEvent(new KeyboardEvent('keydown', { key, code, bubbles: true }))",
            [key, code],
        )
        labelling.settle()
    assert [(row.kind, row.strength) for row in labelling.events()] == [("skip", None), ("label", 2)]


def test_the_whole_queue_can_be_done_with_tab_and_enter_alone(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(3)))
    page = labelling.page
    focused = "document.activeElement.dataset.do"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "help":
            break
    page.keyboard.press("Enter")
    labels = []
    for _ in range(60):  # the focus stays in the panel, and goes round
        page.keyboard.press("Tab")
        labels.append(page.evaluate("document.activeElement.closest('dialog, body').className"))
    assert set(labels) <= {"tu-dialog tu-help", page.evaluate("document.body.className")}
    assert page.evaluate("document.querySelector('.tu-bar').contains(document.activeElement)") is False
    page.keyboard.press("Escape")
    assert page.evaluate(focused) == "help", "the focus is back where it was"
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate(focused) == "tie":
            break
    labelling.press("Enter", "Enter", "Enter")
    assert [row.tiers for row in labelling.events()] == [[[0, 1]]] * 3
    assert page.get_by_role("heading", name="All pairs are labelled").is_visible()


# ---- More than a preference -------------------------------------------------------------------------------------


def test_an_ideal_answer_is_written_or_edited_and_the_pair_stays_open(labelling: Labelling) -> None:
    page, before = labelling.page, labelling.texts
    page.keyboard.press("e")
    page.get_by_role("button", name="From B").click()
    page.keyboard.press("Control+End")
    page.keyboard.type(" Or toast it.")
    page.keyboard.press("Escape")
    assert labelling.events() == []
    page.keyboard.press("e")  # the draft was kept
    page.keyboard.press("Control+Enter")
    labelling.settle()
    assert [(row.kind, row.note) for row in labelling.events()] == [("demonstration", f"{before[1]} Or toast it.")]
    assert labelling.texts == before
    page.keyboard.press("e")
    assert page.locator(".tu-editor textarea").input_value() == ""
    page.keyboard.press("Escape")
    labelling.press("1")
    assert [row.kind for row in labelling.events()] == ["demonstration", "label"]


def test_where_a_reason_is_wanted_the_key_leads_to_it_and_enter_sends_both(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(3), rationale_share=1))
    page, preferred = labelling.page, labelling.texts[0]
    page.keyboard.press("2")
    assert "A better: why? This pair needs a reason" in labelling.words("note")
    page.keyboard.press("Enter")
    assert labelling.events() == [] and page.evaluate("document.activeElement.tagName") == "TEXTAREA"
    page.keyboard.type("It says how.")
    labelling.press("Enter")
    assert labelling.chosen() == [preferred] and labelling.events()[0].note == "It says how."
    page.keyboard.press("7")
    page.keyboard.press("Escape")
    assert len(labelling.events()) == 1
    labelling.press("s")
    assert [row.kind for row in labelling.events()] == ["label", "skip"]


def test_criteria_go_with_the_label_by_key_and_by_click(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(3), criteria=["helpful", "honest", "harmless"]))
    first = labelling.texts
    labelling.page.keyboard.press("h")
    for _ in range(2):
        labelling.page.keyboard.press("j")
    labelling.page.get_by_role("group", name="harmless").get_by_role("button", name="B", exact=True).click()
    labelling.press("4")
    said = labelling.events()[0]
    texts = [one["text"] for one in said.completions]
    assert said.criteria == {"helpful": texts.index(first[0]), "honest": None, "harmless": texts.index(first[1])}
    labelling.press("4")
    assert labelling.events()[1].criteria is None, "they begin anew with every pair"


@pytest.fixture
def ranking(start: Any, visit: Any, answers_to: Any) -> Labelling:
    """Two prompts with five answers each to rank."""
    names = ["one", "two", "three", "four", "five"]
    return visit(
        start(
            [answers_to(f"Question {i}?", [f"answer {name} {i}" for name in names]) for i in range(2)], task="ranking"
        )
    )


def ranked(labelling: Labelling) -> list[list[str]]:
    said = labelling.events("label")[-1]
    return [sorted(said.completions[index]["text"] for index in tier) for tier in said.tiers]


def test_a_ranking_is_its_letters_best_to_worst_with_ties(ranking: Labelling) -> None:
    a, b, c, d, e = ranking.texts
    page = ranking.page
    for key in ("c", "a", "Backspace", "e", "Shift+A"):
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    assert "2 answers are not ranked yet" in ranking.words("say") and ranking.events() == []
    for key in ("b", "=", "d"):
        page.keyboard.press(key)
    assert page.locator(".tu-rank").all_inner_texts() == ["2nd =", "4th =", "1st", "4th =", "2nd ="]
    ranking.press("Enter")
    assert ranked(ranking) == [[c], sorted([a, e]), sorted([b, d])]
    ranking.press("f")  # letters stand for answers only as far as there are answers
    assert [row.kind for row in ranking.events()] == ["label", "flag"]
    assert ranking.problems == []


def test_a_ranking_can_be_dragged_by_mouse_and_by_touch(ranking: Labelling, chromium: Any, visit: Any) -> None:
    a, b, c, d, e = ranking.texts
    page = ranking.page
    for place in (0, 1, 2, 3, 4):
        page.locator(f"[data-place='{place}']").click()

    def box(place: int) -> dict[str, float]:
        found: dict[str, float] = page.locator(f"[data-place='{place}']").bounding_box()
        return found

    def centre(place: int) -> tuple[float, float]:
        found = box(place)
        return found["x"] + found["width"] / 2, found["y"] + found["height"] / 2

    def drag(place: int, x: float, y: float) -> None:
        page.mouse.move(*centre(place))
        page.mouse.down()
        page.mouse.move(x - 15, y, steps=4)
        page.mouse.move(x, y)
        page.mouse.up()

    drag(4, *centre(1))  # onto B: a tie
    drag(3, box(0)["x"] - 12, centre(0)[1])  # before A: the best
    assert page.locator(".tu-rank").all_inner_texts() == ["2nd", "3rd =", "5th", "1st", "3rd ="]
    session = ranking.context.new_cdp_session(page)  # a finger: Playwright itself can only tap

    def touch(kind: str, *points: tuple[float, float]) -> None:
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y} for x, y in points]})

    session.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    start, end = centre(2), centre(0)
    touch("touchStart", start)
    for step in range(1, 9):
        touch("touchMove", tuple(s + (t - s) * step / 8 for s, t in zip(start, end, strict=True)))  # type: ignore[arg-type]
    touch("touchEnd")
    assert page.locator(".tu-rank").all_inner_texts() == ["2nd =", "4th =", "2nd =", "1st", "4th ="]
    ranking.do("submit").click()
    ranking.settle()
    assert ranked(ranking) == [[d], sorted([a, c]), sorted([b, e])]


def test_practice_says_after_each_answer_what_was_expected(start: Any, visit: Any, rows: Any, tmp_path: Path) -> None:
    known = [
        {"prompt": f"Known {i}?", "chosen": "good", "rejected": "bad", "explanation": f"Because {i}."} for i in range(2)
    ]
    path = tmp_path / "known.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in known), encoding="utf-8")
    app = start(rows(3), qualification=path)
    labelling = visit(app)
    assert labelling.words("count") == "Practice 1 of 2"
    for number, right in enumerate((True, False)):
        good = labelling.texts.index("good")
        labelling.press("1" if (good == 0) is right else "7")
        feedback = labelling.words("feedback")
        assert ("Not as expected" not in feedback) is right and f"{'AB'[good]} is better" in feedback
        assert "Because" in feedback and sorted(labelling.texts) == ["bad", "good"]
        labelling.press("1")
        assert len(labelling.events()) == number + 1 and "Go on to the next pair first" in labelling.words("say")
        labelling.press("Enter")
    assert labelling.page.get_by_role("heading", name="The practice round was not passed").is_visible()
    assert {row.purpose for row in labelling.events()} == {"qualification"} and labelling.problems == []


def test_the_mirror_shows_ones_own_habits_after_enough_labels(start: Any, visit: Any, rows: Any) -> None:
    labelling = visit(start(rows(22)))
    labelling.press("o")
    labelling.page.get_by_text("too early to tell").wait_for()
    assert "Only you see this" in labelling.words("mirror")
    labelling.press("Escape")
    for _ in range(22):
        labelling.press("1")
    labelling.press("o")
    labelling.page.get_by_text("Try reading B first for a while").wait_for()
    assert "preferred in 100 % of 22" in labelling.words("mirror")


# ---- Reading ----------------------------------------------------------------------------------------------------


def test_differences_are_marked_the_common_beginning_is_faded_and_raw_text_is_raw(
    start: Any, visit: Any, answers_to: Any
) -> None:
    texts = ["Bread **keeps** in a bag for three days, $x^2$.", "Bread **keeps** in a bag for two days, $x^3$."]
    labelling = visit(start([answers_to("Q?", texts)]))
    page = labelling.page
    rendered = labelling.texts
    assert page.locator(".tu-answer math").count() == 2 and page.locator(".tu-answer strong").count() == 2
    labelling.press("d")
    assert sorted(page.locator("mark.tu-only").all_inner_texts()) == ["three", "two"]
    assert page.locator("math.tu-only").count() == 2
    assert "".join(page.locator(".tu-begin").all_inner_texts()) == "Breadkeepsin a bag for" * 2
    assert labelling.texts == rendered, "marks change no text"
    labelling.press("m")
    assert sorted(labelling.texts) == sorted(texts) and page.locator(".tu-answer math").count() == 0
    assert sorted(page.locator("mark.tu-only").all_inner_texts()) == ["$x^2$.", "$x^3$.", "three", "two"]
    labelling.press("d", "m")
    assert labelling.texts == rendered and page.locator("mark").count() == 0
    assert labelling.do("diff").get_attribute("aria-pressed") == "false"


def test_the_browser_marks_what_cannot_be_seen_as_the_server_does(start: Any, visit: Any, answers_to: Any) -> None:
    hidden = (
        "ab\u202ecd \u200b\u200bx\x1b[8my می\u200cخواهم 👨\u200d👩 ❤\ufe0f a\ufe0f \U000e0041 a\r\nb \u2028\u00ad<b>"
    )
    labelling = visit(start([answers_to("Q?", [hidden, "- " * 19 + "deep\n\n" + "> " * 39 + "deeper"])]))
    for word in ("deep", "deeper"):  # what stands deep is in sight
        box = labelling.page.get_by_text(word, exact=True).bounding_box()
        around = labelling.page.locator(".tu-answer", has_text="deeper").bounding_box()
        assert around["x"] < box["x"] and box["x"] + box["width"] < around["x"] + around["width"] and box["width"] > 40
    labelling.press("m")
    raw = next(text for text in labelling.page.locator(".tu-answer .tu-text").all_text_contents() if "RLO" in text)
    assert raw == unescape(re.sub(r"<[^<>]*>", "", seen(hidden))) and "ZWSP×2" in raw
    assert labelling.page.locator(".tu-answer .tu-mark").count() == 7


def test_the_diff_finds_a_longest_common_subsequence_and_gives_up_on_texts_that_are_too_long(
    labelling: Labelling,
) -> None:
    def length(a: list[str], b: list[str]) -> int:
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, one in enumerate(a, 1):
            for j, other in enumerate(b, 1):
                table[i][j] = table[i - 1][j - 1] + 1 if one == other else max(table[i - 1][j], table[i][j - 1])
        return table[-1][-1]

    chance = random.Random(0)
    pairs = [[chance.choices("abc", k=chance.randrange(12)) for _ in range(2)] for _ in range(300)]
    script = (
        "async (pairs) => { const { diff } = await import('/static/diff.js'); return pairs.map((p) => diff(...p)); }"
    )
    for (a, b), found in zip(pairs, labelling.page.evaluate(script, pairs), strict=True):
        kept = [word for word, same in zip(a, found["a"], strict=True) if same]
        assert kept == [word for word, same in zip(b, found["b"], strict=True) if same]
        assert len(kept) == length(a, b) and found["whole"]
        assert a[: found["prefix"]] == b[: found["prefix"]] and all(found["a"][: found["prefix"]])
    far = [["same", *(f"{side}{i}" for i in range(MAX_WORDS + 1)), "end"] for side in "ab"]
    (found,) = labelling.page.evaluate(script, [far])
    assert not found["whole"] and found["prefix"] == 1 and found["a"].count(True) == 2


def test_the_browser_marks_the_words_that_the_server_marks(labelling: Labelling) -> None:
    pairs = [
        ("the cat sat on the mat\n\nand slept", "the dog sat on a mat\n\nand slept well today"),
        ("面包放在冰箱里变硬", "面包放在室温下变硬"),
        ("กินข้าวแล้ว ok", "กินข้าวหรือยัง ok"),
        ("a\ufeffb c\x85d e\x1ff g\u00a0h\u2003i", "a b c d e f g h i"),
        ("", "one"),
        ("x " * 3000 + "a", "y " * 3000 + "a"),
        ("x " * (MAX_WORDS + 1), "y"),
    ]
    chance = random.Random(1)

    def text() -> str:
        return " ".join(chance.choices("a b c. d\n 中 e".split(" "), k=chance.randrange(40)))

    pairs += [(text(), text()) for _ in range(300)]
    script = """async (pairs) => {
        const { diff, WORD } = await import('/static/diff.js');
        return pairs.map((pair) => diff(...pair.map((text) => text.match(WORD) ?? [])));
    }"""
    for texts, browser in zip(pairs, labelling.page.evaluate(script, pairs), strict=True):
        server = word_diff(*texts)
        assert browser["whole"] == (server is not None)
        assert server is None or (browser["a"], browser["b"]) == server, texts


def test_a_difference_of_long_answers_is_there_at_once(labelling: Labelling) -> None:
    script = """async (pair) => {
        const { diff } = await import('/static/diff.js');
        const start = performance.now();
        diff(...pair);
        return performance.now() - start;
    }"""
    chance = random.Random(0)
    pair = [chance.choices([f"word{i}" for i in range(200)], k=1000) for _ in range(2)]
    assert labelling.page.evaluate(script, pair) < 100


def test_the_prompt_scrolls_alone_and_has_three_sizes_that_stay(start: Any, visit: Any, answers_to: Any) -> None:
    labelling = visit(start([answers_to("word " * 3000, ["a", "b"])]))
    prompt = labelling.page.locator(".tu-prompt-text")
    heights = []
    for _ in range(3):
        heights.append(prompt.bounding_box()["height"])
        assert heights[-1] <= 0.3 * 800 + 1
        labelling.press("p")
    assert len(set(heights)) == 3 and prompt.bounding_box()["height"] == heights[0]
    labelling.press("p")
    labelling.open()
    assert prompt.bounding_box()["height"] == heights[1]
    assert labelling.page.evaluate("document.documentElement.scrollHeight <= innerHeight")


def test_of_a_conversation_the_turn_that_is_answered_is_in_sight(start: Any, visit: Any, answers_to: Any) -> None:
    said = ["Write a function. " * 20, "In place, or a new list?", "A new list, please."]
    prompt = [Message(role="assistant" if n % 2 else "user", content=text) for n, text in enumerate(said)]
    row = answers_to("-", ["x", "y"]).model_copy(update={"prompt": prompt, "prompt_id": prompt_id(prompt)})
    page = visit(start([row])).page
    for width, height in ((1280, 800), (320, 640), (640, 400)):
        page.set_viewport_size({"width": width, "height": height})
        for _ in range(3):  # sizes of the prompt
            page.keyboard.press("p")
            pane, last = page.locator(".tu-prompt-text").bounding_box(), page.get_by_text(said[2]).bounding_box()
            assert pane["y"] <= last["y"] and last["y"] + last["height"] <= pane["y"] + pane["height"] + 4
    page.locator(".tu-prompt-text").evaluate("(pane) => pane.scrollTo(0, 0)")
    first, pane = page.locator(".tu-turn").first.bounding_box(), page.locator(".tu-prompt-text").bounding_box()
    assert first["y"] >= pane["y"]


def test_at_200_percent_zoom_an_answer_is_in_sight_and_so_is_what_waits_to_be_sent(
    start: Any, visit: Any, answers_to: Any, context: Any
) -> None:
    labelling = visit(start([answers_to("a long question " * 60, [f"x{i}", f"y{i}"]) for i in range(2)]))
    page = labelling.page
    page.set_viewport_size({"width": 640, "height": 400})  # what a window of 1280 x 800 has then
    context.set_offline(True)
    page.keyboard.press("1")
    waiting = page.get_by_text("1 label waiting, kept on this computer")
    waiting.wait_for()
    told, menu = waiting.bounding_box(), page.locator(".tu-menu").bounding_box()
    assert told["x"] + told["width"] <= menu["x"], "it does not run under the menu"
    answer, bar = page.locator(".tu-answer .tu-text").first.bounding_box(), page.locator(".tu-bar").bounding_box()
    assert answer["y"] + 40 < bar["y"]
    context.set_offline(False)
    labelling.settle()


def test_nothing_moves_when_the_next_pair_comes(start: Any, visit: Any, answers_to: Any) -> None:
    long = "word " * 900
    labelling = visit(
        start([answers_to("q " * (1 + 400 * (i % 2)), [f"x{i}", f"{long if i % 3 else ''}y{i}"]) for i in range(5)])
    )
    where = "() => [...document.querySelectorAll('.tu-answer, .tu-bar, .tu-bar button, .tu-prompt, .tu-menu')].map((e) => JSON.stringify(e.getBoundingClientRect()))"  # noqa: E501
    before = labelling.page.evaluate(where)
    for key in ("1", "7", "s", "u"):
        labelling.press(key)
        assert labelling.page.evaluate(where) == before, key
    a, b = labelling.page.locator(".tu-answer").all()
    assert a.bounding_box()["width"] == b.bounding_box()["width"]


def test_a_break_is_suggested_after_twenty_five_minutes_and_can_be_sent_away(labelling: Labelling) -> None:
    page = labelling.page
    page.clock.install()
    labelling.open()
    for _ in range(9):
        page.keyboard.press("4")
        page.clock.run_for(200)
        assert page.locator(".tu-nudge").is_hidden()
        page.clock.run_for(170_000)
        labelling.settle()
    page.keyboard.press("4")
    page.clock.run_for(200)
    assert "A short break" in labelling.words("nudge")
    page.locator(".tu-nudge button").click()
    assert page.locator(".tu-nudge").is_hidden()


# ---- Blindness and untrusted text -------------------------------------------------------------------------------


def test_no_byte_that_the_browser_gets_says_where_an_answer_came_from(
    labelling: Labelling, campaign: Any, secret: str
) -> None:
    with labelling.store.read() as db:
        item_ids = set(db.execute(sa.select(item.c.item_id)).scalars())
    labelling.press("1", "7", "4", "s", "u", "o", "Escape", "g", "Escape")
    seen = ["\n".join([r.url, str(r.headers), body(r)]) for r in labelling.responses]
    assert any("/config" in r.url or r.url.rstrip("/").endswith("/label") for r in labelling.responses)
    assert any("Freeze loaf" in text for text in seen), "the answers did pass through here"
    seen.append(labelling.page.content())
    forbidden = {secret, "0.987654", "policy_sha256", "sampler", "token_ids", 'temperature":', str(campaign.dir)}
    for text in seen:
        for word in forbidden | item_ids | {"SmolLM", "heldout"}:
            assert word not in text, word
    tokens = {task["token"] for r in labelling.responses if "/api/v1/tasks" in r.url for task in r.json()["tasks"]}
    assert tokens and not any(token in labelling.page.content() for token in tokens)


def body(response: Any) -> str:
    if 300 <= response.status < 400:
        return ""
    if response.request.resource_type in ("script", "stylesheet", "font"):
        return ""  # gradio's own files, and ours
    if "/heartbeat/" in response.url:
        return ""  # a stream that never ends, and of a page without Gradio events carries nothing
    return str(response.text())


def test_model_text_is_shown_and_never_run_or_fetched(
    start: Any, visit: Any, answers_to: Any, context: Any, attacks: list[str]
) -> None:
    outside: list[str] = []
    context.on("request", lambda r: None if re.match(r"http://127|data:", r.url) else outside.append(r.url))
    labelling = visit(
        start([answers_to(f"{attack} {i}", [attack, f"harmless {i}"]) for i, attack in enumerate(attacks)])
    )
    shown, page = "", labelling.page
    for number in range(len(attacks)):
        for key in ("", "d", "m", "d"):  # rendered, with differences, raw, raw with differences
            if key:
                page.keyboard.press(key)
            shown += page.locator(".tu-work").inner_text()
            assert (
                page.locator(".tu-work :is(script, img, svg, iframe, style, details:not(.tu-reasoning))").count() == 0
            )
            assert (
                page.locator(".tu-work a[href^='javascript'], .tu-work [onclick], .tu-work [href*=hacked]").count() == 0
            )
        page.keyboard.press("m")
        page.keyboard.press("e")
        page.get_by_role("button", name="From A").click()
        page.get_by_role("button", name="Empty").click()
        page.keyboard.press("Escape")
        labelling.press("1")
        assert len(labelling.events()) == number + 1, labelling.words("say")
    assert page.evaluate("window.hacked") is None and outside == [] and labelling.problems == []
    assert "<script>window.hacked = 1</script>" in shown, "the labeller sees what the model wrote"


# ---- Everybody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(320, 640), (640, 360), (1280, 720)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_state_of_the_page_is_accessible_and_fits(
    start: Any,
    visit: Any,
    answers_to: Any,
    chromium: Any,
    serious: Any,
    fits: Any,
    size: tuple[int, int],
    scheme: str,
) -> None:
    width, height = size
    inside = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    texts = ["A **word**, `code`, $x^2$.\n\n```\nlong = 1\n```\n\n| a | b |\n|-|-|\n| 1 | 2 |", "Another word. " * 80]
    labelling = visit(start([answers_to(f"Q{i}?", texts) for i in range(2)], criteria=["helpful", "honest"]), inside)
    page = labelling.page
    assert serious(page) == []
    fits(page, width)
    labelling.press("d")
    assert serious(page) == []
    labelling.press("m")
    for key in ("n", "e", "g", "o", "?"):
        labelling.press(key)
        assert serious(page) == [], key
        labelling.press("Escape")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    labelling.press("1", "1")
    assert serious(page) == []
    fits(page, width)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 242)"
    assert light == (scheme == "light") and labelling.problems == []
    inside.close()


@pytest.mark.parametrize(("width", "height"), [(320, 720), (640, 400), (1280, 720)])
def test_the_ranking_is_accessible_and_fits(
    ranking: Labelling, serious: Any, fits: Any, width: int, height: int
) -> None:
    ranking.page.set_viewport_size({"width": width, "height": height})
    for key in ("a", "c", "Shift+E"):
        ranking.page.keyboard.press(key)
    assert serious(ranking.page) == []
    fits(ranking.page, width)
    assert ranking.page.locator(".tu-bar").bounding_box()["height"] < height / 2, "room is left for answers"


# ---- Many at once -----------------------------------------------------------------------------------------------


def test_a_press_reaches_the_store_once_when_two_windows_send_the_same_outbox(
    labelling: Labelling, context: Any
) -> None:
    gate = threading.Event()
    intercept(
        labelling.page, "**/api/v1/labels", lambda route: route.abort() if not gate.is_set() else route.continue_()
    )
    labelling.page.keyboard.press("6")
    labelling.page.get_by_text("1 label waiting").wait_for()
    other = Labelling(context, labelling.url, labelling.store)  # takes over what waits in this browser
    gate.set()
    labelling.settle()
    assert len(labelling.events()) == 1
    other.press("2")
    assert len(labelling.events()) == 2


def test_a_press_that_one_window_took_back_is_not_sent_by_the_other(labelling: Labelling, context: Any) -> None:
    """Both have taken over what waits in this browser; what is taken back is out of both."""
    page, other = labelling.page, Labelling(context, labelling.url, labelling.store)
    intercept(context, "**/api/v1/labels", lambda route: route.abort())
    page.keyboard.press("1")
    page.get_by_text("1 label waiting").wait_for()
    labelling.shown()
    taken_back = set(labelling.texts)
    page.keyboard.press("7")
    page.get_by_text("2 labels waiting").wait_for()
    other.page.reload()
    other.page.get_by_text("2 labels waiting").wait_for()
    other.shown()  # a page that has no pair yet takes no key
    other.page.keyboard.press("u")
    other.page.get_by_text("1 label waiting").wait_for()
    context.unroute("**/api/v1/labels")
    for window in (labelling, other):
        window.settle()
    assert [row.strength for row in labelling.events()] == [3]
    assert set(labelling.chosen()) & taken_back == set()
    other.press("5")
    assert len(labelling.events()) == 2


def test_a_press_that_is_in_doubt_is_taken_back_by_the_server_and_its_replay_changes_nothing(
    labelling: Labelling, context: Any
) -> None:
    """The first window does not know whether its press arrived; the second takes it back; the first sends it again."""
    gate = threading.Event()
    intercept(
        labelling.page, "**/api/v1/labels", lambda route: route.abort() if not gate.is_set() else route.continue_()
    )
    labelling.page.keyboard.press("1")
    labelling.page.get_by_text("1 label waiting").wait_for()
    other = Labelling(context, labelling.url, labelling.store)  # sends it
    other.settle()
    assert len(labelling.events()) == 1
    other.press("u")
    gate.set()
    labelling.settle()
    assert [row.kind for row in labelling.events()] == ["label", "undo"] and labelling.store.rankings(["human"]) == []
