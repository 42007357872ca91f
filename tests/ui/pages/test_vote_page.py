"""The voting page in a real browser: a vote, its reveal, the next pair; nothing says before whose answer is whose."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from looking import STATES, Answering, intercept

from trueup import runs
from trueup.data.records import write_rows
from trueup.judging.votes import read_votes
from ui.app import run_app
from ui.labels.tables import item
from ui.people.accounts import COOKIE

pytestmark = pytest.mark.browser

PASSWORD = "four words are enough"


class Voting(Answering):
    """A page that is open on the votes of a run."""

    def __init__(self, context: Any, app: Any, name: str | None = None):
        people = app.state.people
        account = next((row.account_id for row in people.accounts() if row.name == name), None)
        self.session = {"name": COOKIE, "value": people.open_session(account), "url": app.state.url}
        context.add_cookies([self.session])
        self.app = app
        super().__init__(context, app.state.url, "/vote")

    @property
    def state(self) -> str:
        return str(self.page.locator(".tu-label").get_attribute("data-state"))

    @property
    def marks(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".tu-rank").all_inner_texts()]

    @property
    def votes(self) -> list[Any]:
        return read_votes(self.app.state.votes.path)


@pytest.fixture
def start(campaign: Any, serve: Any) -> Callable[..., Any]:
    """`start(prompts)` serves a run with a comparison of so many prompts: the application, with its `url`."""

    def start(prompts: int = 6, text: Callable[[str, int], str] = "{0} answer {1}".format, people: bool = False) -> Any:
        folder = runs.stage_dir(campaign.dir, "compare")
        folder.mkdir(parents=True)
        rows = [
            {
                "prompt": [{"role": "user", "content": f"Compared question {i}?"}],
                "sft": [{"text": text("Old", i), "finished": False, "scores": {"reward_model": 0.8765432}}],
                "aligned": [{"text": text("New", i), "finished": True, "scores": {"reward_model": 0.7654321}}],
            }
            for i in range(prompts)
        ]
        write_rows(folder / "samples.jsonl", rows)
        if people:
            from ui.label.run import prepare
            from ui.labels.store import Store

            config = campaign.label()
            store = Store(config.store_url)
            prepare(config, store)
            store.close()
            runs.begin(config)
        app = run_app(campaign.dir)
        if people:
            for name, role in (("Root", "admin"), ("Ann", "annotator"), ("Bob", "annotator")):
                app.state.people.add(name, role, PASSWORD)
        app.state.url = serve(app)
        return app

    return start


@pytest.fixture
def voting(start: Any, context: Any) -> Voting:
    """Six pairs, for the person at this machine, who is an admin."""
    return Voting(context, start())


# ---- A vote and its reveal --------------------------------------------------------------------------------------


def test_a_key_votes_the_page_says_whose_answers_they_were_and_enter_goes_on(voting: Voting) -> None:
    for number, (key, go_on) in enumerate([("1", "Enter"), ("6", "Space"), ("3", "Enter"), ("4", "Enter")], start=1):
        before = voting.texts
        assert voting.state == "ready" and voting.marks == ["", ""]
        voting.press(key)
        policies = ["Aligned policy" if text.startswith("New") else "SFT policy" for text in before]
        assert voting.state == "feedback" and voting.marks == policies and voting.texts == before
        told = voting.words("feedback")
        assert f"A is from the {policies[0].replace('Al', 'al')}" in told
        preferred = {"1": 0, "3": 0, "6": 1}.get(key)
        assert ("You found them equal" in told) == (preferred is None)
        wanted = 0.5 if preferred is None else float(before[preferred].startswith("New"))
        assert len(voting.votes) == number and voting.votes[-1].outcome == wanted
        assert voting.page.locator(".tu-answer.best").count() == (preferred is not None)
        voting.press("2")
        assert len(voting.votes) == number and "Go on to the next pair first" in voting.words("say")
        voting.press(go_on)
        assert voting.texts != before and voting.words("count") == f"{number} of 6 voted on"
    voting.page.get_by_role("button", name="B better").click()
    voting.settle()
    voting.page.get_by_role("button", name="Next pair").click()
    voting.settle()
    voting.press("0")
    assert "You found both bad" in voting.words("feedback") and len(voting.votes) == 6
    voting.press("Enter")
    assert voting.page.get_by_role("heading", name="All pairs are voted on").is_visible()
    assert voting.problems == [] and all(one.seconds > 0 for one in voting.votes)


def test_enter_goes_on_wherever_the_focus_is(voting: Voting) -> None:
    voting.press("1")
    voting.page.locator(".tu-answer .tu-text").first.click()
    voting.press("Enter")
    assert voting.state == "ready" and len(voting.votes) == 1


def test_a_vote_is_final_and_the_page_offers_neither_undo_nor_an_ideal_answer(voting: Voting) -> None:
    assert "A vote is final" in voting.words("say")
    for name in ("undo", "write"):
        assert voting.page.locator(f"[data-do={name}]").count() == 0
    voting.press("1", "Enter", "u", "e")
    assert len(voting.votes) == 1 and voting.state == "ready"
    voting.press("?")
    assert "so a vote is final" in voting.page.locator(".tu-help").inner_text()
    assert "Undo" not in voting.page.locator(".tu-help").inner_text()


def test_a_skip_goes_on_at_once_and_tells_nothing(voting: Voting) -> None:
    before = voting.texts
    voting.press("s")
    assert voting.state == "ready" and voting.texts != before and voting.marks == ["", ""]
    assert voting.votes == [] and voting.words("count") == "0 of 6 voted on, 1 skipped"


def test_a_refresh_shows_the_same_pair_with_its_sides_and_after_the_vote_the_next(voting: Voting) -> None:
    voting.press("1", "Enter")
    before = voting.texts
    voting.open()
    assert voting.texts == before and voting.words("count") == "1 of 6 voted on"
    voting.press("7")
    voting.open()  # in the middle of the reveal
    assert voting.state == "ready" and voting.texts != before and voting.marks == ["", ""]
    assert len(voting.votes) == 2 and voting.words("count") == "2 of 6 voted on"


def test_without_a_connection_a_vote_waits_for_its_reveal_and_counts_once(voting: Voting, context: Any) -> None:
    before = voting.texts
    context.set_offline(True)
    voting.page.keyboard.press("2")
    voting.page.get_by_text("1 vote waiting, kept on this computer").wait_for()
    assert voting.texts == before and voting.marks == ["", ""] and voting.votes == []
    voting.page.keyboard.press("7")
    assert "the server has not answered yet" in voting.words("say")
    context.set_offline(False)
    voting.settle()
    assert voting.state == "feedback" and len(voting.votes) == 1


def test_a_vote_that_was_not_sent_before_the_page_was_closed_is_sent_by_the_next(voting: Voting, context: Any) -> None:
    intercept(voting.page, "**/api/v1/votes/labels", lambda route: route.abort())
    before = voting.texts
    voting.page.keyboard.press("6")
    voting.page.get_by_text("1 vote waiting").wait_for()
    voting.page.close()
    again = Voting(context, voting.app)
    assert len(again.votes) == 1 and again.texts != before


def test_a_lost_confirmation_makes_no_second_vote_and_the_reveal_still_comes(voting: Voting) -> None:
    lost: list[int] = []

    def lose_first(route: Any) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    intercept(voting.page, "**/api/v1/votes/labels", lose_first)
    voting.press("1")
    assert lost == [200] and len(voting.votes) == 1 and set(voting.marks) == {"Aligned policy", "SFT policy"}


# ---- People -----------------------------------------------------------------------------------------------------


def test_an_admin_sees_the_win_rate_between_pairs_and_never_over_one(voting: Voting) -> None:
    standing = voting.page.locator(".tu-feedback .tu-standing")
    assert not standing.is_visible()
    voting.press("1")
    standing.get_by_text(
        re.compile(r"So far aligned wins \d+\.0 % .* of 1 vote, by 1 person on 1 of 6 prompts")
    ).wait_for()
    voting.press("Enter")
    assert not standing.is_visible()
    for _ in range(5):
        voting.press("1", "Enter")
    voting.page.locator(".tu-done").get_by_text("of 6 votes, by 1 person on 6 of 6 prompts").wait_for()
    assert voting.page.get_by_role("link", name="To the comparison").is_visible() and voting.problems == []


def test_two_people_vote_at_once_and_see_no_figures(start: Any, chromium: Any) -> None:
    app = start(people=True)
    contexts = [chromium.new_context() for _ in range(2)]
    ann, bob = (Voting(one, app, name) for one, name in zip(contexts, ("Ann", "Bob"), strict=True))
    assert set(ann.texts) != set(bob.texts), "other prompts first"
    for _ in range(6):
        for one in (ann, bob):
            one.press("1")
            assert one.state == "feedback" and "aligned wins" not in one.page.content()
            one.press("Enter")
    for one in (ann, bob):
        assert one.page.get_by_role("heading", name="All pairs are voted on").is_visible()
        assert not one.page.get_by_role("link", name="To the comparison").is_visible()
        assert not [response for response in one.responses if "/admin/" in response.url] and one.problems == []
    assert len(ann.votes) == 12 and len({(one.voter, one.prompt_id) for one in ann.votes}) == 12
    for one in contexts:
        one.close()


def test_after_the_next_login_a_vote_is_sent_and_the_link_leads_back_here(voting: Voting, context: Any) -> None:
    context.clear_cookies()
    voting.page.keyboard.press("2")
    alert = voting.page.get_by_role("alert")
    alert.get_by_text("Your session has ended. Your votes are kept on this computer").wait_for()
    assert alert.get_by_role("link", name="Sign in").get_attribute("href") == "/login?next=/vote"
    context.add_cookies([voting.session])
    voting.open()
    assert len(voting.votes) == 1


def test_how_one_votes_is_ones_own_to_see_and_leads_back_to_the_other_pages(voting: Voting) -> None:
    voting.press("1", "Enter", "o")
    voting.page.locator(".tu-mirror[open]").wait_for()
    assert "How you vote" in voting.words("mirror") and "Votes\n1, and 0 skipped" in voting.words("mirror")
    assert voting.page.get_by_role("link", name="All pages").get_attribute("href") == "/"


# ---- Blindness and untrusted text -------------------------------------------------------------------------------


def body(response: Any) -> str:
    if 300 <= response.status < 400 or "/heartbeat/" in response.url:
        return ""
    if response.request.resource_type in ("script", "stylesheet", "font"):
        return ""
    return str(response.text())


def test_no_byte_before_the_vote_says_whose_answer_is_whose(voting: Voting, campaign: Any) -> None:
    store = voting.app.state.votes.service().store
    with store.read() as db:
        item_ids = set(db.execute(sa.select(item.c.item_id)).scalars())
    voting.press("g", "Escape", "d", "m", "s", "o")
    voting.page.locator(".tu-mirror[open]").wait_for()
    voting.press("Escape")
    seen = ["\n".join([r.url, str(r.headers), body(r)]) for r in voting.responses] + [voting.page.content()]
    assert any("New answer" in text for text in seen), "the answers did pass through here"
    forbidden = {"aligned", "sft", "SFT policy", "reward_model", "0.8765432", "finished", "sampler", str(campaign.dir)}
    for text in seen:
        for word in forbidden | item_ids:
            assert word not in text, word
    with voting.page.expect_response("**/votes/labels") as answered:
        voting.press("1")
    assert "aligned" in body(answered.value), "and after it does"


def test_model_text_is_shown_and_never_run_or_fetched(start: Any, context: Any, attacks: list[str]) -> None:
    outside: list[str] = []
    context.on("request", lambda r: None if re.match(r"http://127|data:", r.url) else outside.append(r.url))
    voting = Voting(context, start(len(attacks), lambda side, i: f"{attacks[i]} {side}"))
    page, shown = voting.page, ""
    for number in range(len(attacks)):
        voting.press("1")
        shown += page.locator(".tu-work").inner_text()
        assert page.locator(".tu-work :is(script, img, svg, iframe, style, details:not(.tu-reasoning))").count() == 0
        assert page.locator(".tu-work a[href^='javascript'], .tu-work [onclick], .tu-work [href*=hacked]").count() == 0
        voting.press("Enter")
        assert len(voting.votes) == number + 1
    assert page.evaluate("window.hacked") is None and outside == [] and voting.problems == []
    assert "<script>window.hacked = 1</script>" in shown


# ---- Everybody --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(320, 640), (640, 360), (1280, 720)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_state_of_the_page_is_accessible_and_fits(
    start: Any, chromium: Any, serious: Any, fits: Any, size: tuple[int, int], scheme: str
) -> None:
    width, height = size
    inside = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, reduced_motion="reduce"
    )
    voting = Voting(inside, start(2, lambda side, i: f"{side} **word** {i}. " + "Another word. " * 60))
    page = voting.page
    for key in ("", "o", "Escape", "?", "Escape", "1"):
        if key:
            voting.press(key)
        assert serious(page) == [], key
    fits(page, width)
    page.locator(".tu-feedback .tu-standing").wait_for()
    strip, bar = page.locator(".tu-feedback").bounding_box(), page.locator(".tu-bar").bounding_box()
    assert strip["x"] >= 0 and strip["x"] + strip["width"] <= width and strip["y"] >= 0
    assert strip["y"] + strip["height"] <= bar["y"]
    voting.press("Enter", "1", "Enter")
    assert serious(page) == [] and voting.state == "done"
    fits(page, width)
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 242)"
    assert light == (scheme == "light") and voting.problems == []
    inside.close()


def test_nothing_moves_when_the_names_are_shown(voting: Voting) -> None:
    where = "() => [...document.querySelectorAll('.tu-answer, .tu-answer .tu-text, .tu-bar, .tu-choices button, .tu-prompt')].map((e) => JSON.stringify(e.getBoundingClientRect()))"  # noqa: E501
    before = voting.page.evaluate(where)
    for key in ("1", "Enter", "4", "Enter"):
        voting.press(key)
        assert voting.page.evaluate(where) == before, key


def test_the_voting_page_is_reached_from_the_list_of_pages(voting: Voting) -> None:
    voting.page.goto(voting.url)
    voting.page.get_by_role("link", name="Vote").click()
    voting.page.wait_for_function(STATES)
    assert voting.page.title() == "Vote · Trueup" and Path(voting.page.url).name == "vote"
