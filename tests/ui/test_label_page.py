"""The pages in a real browser: one key is one label, nothing says whose answer it is, and everybody can use them."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trueup.errors import TrueupError
from ui.app import label_app, run_app, serve_label
from ui.guard import require_loopback
from ui.render import text_html
from ui.store import Store

browser_test = pytest.mark.browser

READY = ".tu-label[data-state=ready]"


class Labelling:
    """A page that is open on the labelling of a campaign, and everything the browser was told."""

    def __init__(self, context: Any, url: str, store: Store):
        self.url, self.store = url, store
        self.problems: list[str] = []
        self.responses: list[Any] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("response", lambda response: self.responses.append(response))
        self.open()

    def open(self) -> None:
        self.page.goto(f"{self.url}/label")
        self.page.wait_for_selector(f"{READY}, [data-state=done]")

    def press(self, key: str) -> None:
        """Press a key and wait until the next pair takes presses."""
        with self.page.expect_response(re.compile("/api/v1/")):
            self.page.keyboard.press(key)
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_function(
            "!['settling', 'loading'].includes(document.querySelector('.tu-label').dataset.state)"
        )
        self.page.wait_for_selector("[data-state=ready], [data-state=done]")

    @property
    def texts(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".tu-answer .tu-text").all_inner_texts()]

    @property
    def count(self) -> str:
        return self.page.locator(".tu-count").inner_text()

    @property
    def status(self) -> str:
        return self.page.locator(".tu-bar").get_by_role("status").inner_text()

    def said(self) -> list[tuple[list[str], list[list[int]]]]:
        return [(row.completions, row.tiers) for row in self.store.rankings(["human"])]


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    made = chromium.new_context(viewport={"width": 1280, "height": 800})
    yield made
    made.close()


@pytest.fixture
def labelling(campaign: Any, serve: Callable[[Any], str], context: Any) -> Labelling:
    app = label_app(campaign.label())
    return Labelling(context, serve(app), app.state.service.store)


def chosen(completions: list[str], tiers: list[list[int]]) -> str:
    return completions[tiers[0][0]]


# ---- One key, one label -----------------------------------------------------------------------------------------


@browser_test
def test_one_key_is_one_label_of_the_answer_on_that_side_and_the_next_pair_is_there(labelling: Labelling) -> None:
    for number, (key, place) in enumerate([("1", 0), ("2", 1), ("1", 0)], start=1):
        preferred, before = labelling.texts[place], labelling.texts
        labelling.press(key)
        assert len(labelling.said()) == number
        assert chosen(*labelling.said()[-1]) == preferred
        assert labelling.texts != before and labelling.count == f"{number}/6 labelled"
    assert labelling.status == "A saved"
    assert labelling.problems == []


@browser_test
def test_tie_and_skip_have_their_keys_and_undo_shows_the_pair_again(labelling: Labelling) -> None:
    tied = labelling.texts
    labelling.press("0")
    assert labelling.said()[0][1] == [[0, 1]]
    skipped = labelling.texts
    labelling.press("s")
    assert labelling.count == "1/6 labelled, 1 skipped" and len(labelling.said()) == 1
    labelling.press("u")
    assert labelling.texts == skipped and labelling.count == "1/6 labelled"
    labelling.press("u")
    assert labelling.texts == tied and labelling.said() == []
    labelling.press("t")
    assert labelling.said()[0][1] == [[0, 1]]


@browser_test
def test_a_key_held_down_or_struck_twice_labels_once(labelling: Labelling) -> None:
    with labelling.page.expect_response(re.compile("/api/v1/labels")):
        for _ in range(6):
            labelling.page.keyboard.down("1")  # without a key up in between: the operating system's repeat
        labelling.page.keyboard.up("1")
        labelling.page.keyboard.press("1")
        labelling.page.keyboard.press("2")
    labelling.settle()
    assert len(labelling.said()) == 1


@browser_test
def test_a_double_click_labels_once(labelling: Labelling) -> None:
    with labelling.page.expect_response(re.compile("/api/v1/labels")):
        labelling.page.get_by_role("button", name="A is better").dblclick()
    labelling.settle()
    assert len(labelling.said()) == 1


@browser_test
def test_the_keys_can_be_switched_off_and_stay_off(labelling: Labelling) -> None:
    labelling.page.get_by_label("Keys").uncheck()
    labelling.open()
    labelling.page.keyboard.press("1")
    labelling.page.wait_for_timeout(200)
    assert labelling.said() == []
    labelling.page.get_by_role("button", name="A is better").click()
    labelling.page.wait_for_function("document.querySelector('.tu-count').textContent.startsWith('1/6')")


@browser_test
def test_typing_into_a_field_never_labels(labelling: Labelling) -> None:
    labelling.page.evaluate("document.querySelector('.tu-foot').append(document.createElement('textarea'))")
    labelling.page.locator("textarea").press_sequentially("12s0ut")
    labelling.page.keyboard.press("Control+1")
    labelling.page.wait_for_timeout(200)
    assert labelling.said() == [] and labelling.page.locator("textarea").input_value() == "12s0ut"


@browser_test
def test_the_whole_queue_can_be_done_with_tab_and_enter_alone(labelling: Labelling) -> None:
    labelling.page.get_by_label("Keys").uncheck()
    labelling.page.locator("body").click(position={"x": 5, "y": 300})
    for _ in range(12):
        labelling.page.keyboard.press("Tab")
        if labelling.page.evaluate("document.activeElement.dataset.do") == "tie":
            break
    for _ in range(6):
        labelling.press("Enter")
    assert [tiers for _, tiers in labelling.said()] == [[[0, 1]]] * 6
    assert labelling.page.get_by_role("heading", name="All pairs are answered").is_visible()


@browser_test
def test_a_reload_shows_the_same_pair_and_the_progress(labelling: Labelling) -> None:
    labelling.press("1")
    before = labelling.texts
    labelling.open()
    assert labelling.texts == before and labelling.count == "1/6 labelled"


@browser_test
def test_of_two_windows_on_one_pair_the_second_press_is_refused_aloud(labelling: Labelling, context: Any) -> None:
    other = Labelling(context, labelling.url, labelling.store)
    assert other.texts == labelling.texts
    labelling.press("1")
    other.press("2")
    assert len(labelling.said()) == 1 and "nothing was recorded" in other.status
    assert other.texts == labelling.texts


@browser_test
def test_a_press_without_a_connection_is_kept_and_saved_once_it_is_back(labelling: Labelling, context: Any) -> None:
    context.set_offline(True)
    labelling.page.keyboard.press("1")
    labelling.page.wait_for_function("document.querySelector('[role=status]').textContent.startsWith('Not saved yet')")
    assert labelling.said() == []
    context.set_offline(False)
    labelling.page.wait_for_function("document.querySelector('.tu-count').textContent.startsWith('1/6')")
    assert len(labelling.said()) == 1 and labelling.status == "A saved"


@browser_test
def test_a_lost_confirmation_makes_no_second_label(labelling: Labelling) -> None:
    """The server writes the label, the answer is lost, the browser sends the press again."""
    lost: list[int] = []

    def lose_first(route: Any) -> None:
        if lost:
            route.continue_()
        else:
            lost.append(route.fetch().status)
            route.abort()

    labelling.page.route("**/api/v1/labels", lose_first)
    labelling.page.keyboard.press("1")
    labelling.page.wait_for_function("document.querySelector('.tu-count').textContent.startsWith('1/6')")
    assert lost == [200] and len(labelling.said()) == 1


# ---- Blindness and untrusted text -------------------------------------------------------------------------------


@browser_test
def test_no_byte_that_the_browser_gets_says_where_an_answer_came_from(
    labelling: Labelling, campaign: Any, secret: str
) -> None:
    with labelling.store.read() as db:
        item_ids = set(db.exec_driver_sql("SELECT item_id FROM item").scalars())
    for key in "120su":
        labelling.press(key)
    seen = ["\n".join([r.url, str(r.headers), body(r)]) for r in labelling.responses]
    assert any("/config" in r.url or r.url.rstrip("/").endswith("/label") for r in labelling.responses)
    assert any("Freeze loaf" in text for text in seen), "the answers did pass through here"
    forbidden = {secret, "0.987654", "policy_sha256", "sampler", "token_ids", 'temperature":', str(campaign.dir)}
    for text in seen:
        for word in forbidden | item_ids | {"SmolLM", "heldout"}:
            assert word not in text, word


def body(response: Any) -> str:
    if 300 <= response.status < 400:
        return ""
    if response.request.resource_type in ("script", "stylesheet", "font"):
        return ""  # gradio's own files
    if "/heartbeat/" in response.url:
        return ""  # a stream that never ends, and of a page without Gradio events carries nothing
    return str(response.text())


ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<svg onload=window.hacked=3>",
    "[click](javascript:window.hacked=4)",
    "![x](https://tracker.example/pixel.png)",
    "<iframe srcdoc='<script>parent.hacked=5</script>'></iframe>",
    "[a]: javascript:window.hacked=6\n\n[a]",
    "<details open ontoggle=window.hacked=7><summary>x</summary></details>",
    '`</code><img src=x onerror="window.hacked=8">`',
    "<style>.tu-bar { display: none }</style>",
    "${window.hacked=9} {{window.hacked=10}} <!-- </main> -->",
]


@browser_test
def test_model_text_is_shown_and_never_run_or_fetched(campaign: Any, answers_to: Any, serve: Any, context: Any) -> None:
    rows = [answers_to(f"{attack} {i}", [attack, f"harmless {i}"]) for i, attack in enumerate(ATTACKS)]
    campaign.sampled(rows, seed=1)
    app = label_app(campaign.label())
    outside: list[str] = []
    context.on("request", lambda r: None if re.match(r"http://127|data:", r.url) else outside.append(r.url))
    labelling = Labelling(context, serve(app), app.state.service.store)
    shown = ""
    for _ in ATTACKS:
        shown += labelling.page.locator(".tu-work").inner_text()
        assert labelling.page.locator(".tu-work :is(script, img, svg, iframe, style, details)").count() == 0
        assert labelling.page.locator(".tu-work a[href^='javascript']").count() == 0
        labelling.press("1")
    assert labelling.page.evaluate("window.hacked") is None and outside == [] and labelling.problems == []
    assert "<script>window.hacked = 1</script>" in shown, "the labeller sees what the model wrote"


def test_markdown_is_rendered_and_html_stays_text() -> None:
    assert text_html("**bold**\nnew line") == "<p><strong>bold</strong><br />\nnew line</p>\n"
    assert "<br>" not in text_html("use the <br> tag") and "&lt;br&gt;" in text_html("use the <br> tag")
    assert "empty answer" in text_html("  \n")


# ---- Everybody --------------------------------------------------------------------------------------------------


def serious(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]


@browser_test
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_every_page_is_accessible_and_fits(
    compared: Any, serve: Any, chromium: Any, tmp_path: Path, width: int, scheme: str
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 720}, color_scheme=scheme)
    app = label_app(compared.label())
    labelling = Labelling(context, serve(app), app.state.service.store)
    page = labelling.page
    assert serious(page) == []
    boxes = [button.bounding_box() for button in page.locator(".tu-bar button").all()]
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["height"] >= 44
    bottoms = [box["y"] for box in boxes]
    labelling.press("2")
    assert [button.bounding_box()["y"] for button in page.locator(".tu-bar button").all()] == bottoms
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert serious(page) == []
    for path, wait in (("/compare/", "#pair .tu-pair"), ("/", ".tu-links")):
        page.goto(labelling.url + path)
        page.wait_for_selector(wait)
        assert serious(page) == []
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    light = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 242)"
    assert light == (scheme == "light")
    assert labelling.problems == []
    context.close()


# ---- Comparison -------------------------------------------------------------------------------------------------


@browser_test
def test_the_comparison_shows_the_verdict_and_browses_answers_by_category(
    compared: Any, serve: Any, context: Any
) -> None:
    page = context.new_page()
    page.goto(f"{serve(run_app(compared.dir))}/compare/")
    page.get_by_text("Verdict: warn.").wait_for()
    assert "The aligned policy is preferred" in page.locator(".tu-verdict").inner_text()
    assert "the aligned answers are <b>shorter</b> by a third" in page.locator(".tu-verdict li").inner_text()
    row = page.get_by_role("row").filter(has_text="rubric").inner_text()
    assert "71.0%" in row and "58.0% to 81.0%" in row and "66.0%" in row and "40 / 5 / 15" in row
    assert "unknown" in page.get_by_role("row").filter(has_text="reward_model").inner_text()
    assert page.locator("#pair").get_by_text("New answer 0 <img src=x onerror=boom()>").is_visible()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Compared question 1?").wait_for()
    page.get_by_role("button", name="Previous").click()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("5 of 5").wait_for()
    page.locator("#category input").click()
    page.get_by_role("option", name="advice").click()
    page.get_by_text("1 of 2").wait_for()
    assert page.locator("#pair").inner_text().startswith("Compared question 1?")


# ---- The server -------------------------------------------------------------------------------------------------


def test_the_web_application_needs_no_torch() -> None:
    check = "import sys, ui.app, ui.label; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], timeout=60).returncode == 0


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.20", "::", "example.org"])
def test_another_address_than_this_machines_is_refused(host: str, campaign: Any) -> None:
    with pytest.raises(TrueupError, match=r"no login.*ssh -L"):
        serve_label(campaign.label(), host=host)


def test_loopback_addresses_are_served() -> None:
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        require_loopback(host)


def test_labelling_before_sampling_says_what_to_run(tmp_path: Path, campaign: Any) -> None:
    with pytest.raises(TrueupError, match="trueup sample CONFIG"):
        label_app(campaign.label(run_dir=tmp_path / "elsewhere"))


@pytest.fixture
def client(campaign: Any) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    app = label_app(campaign.label())
    yield TestClient(app, base_url="http://127.0.0.1:7860")
    app.state.service.store.close()


def test_other_sites_in_the_same_browser_can_neither_write_nor_read(client: Any) -> None:
    press = {"client_uuid": "12345678", "token": client.get("/api/v1/task").json()["token"], "choice": "a"}
    assert client.post("/api/v1/labels", json=press, headers={"Origin": "https://evil.example"}).status_code == 403
    assert client.get("/api/v1/task", headers={"Host": "evil.example:7860"}).status_code == 403
    assert client.get("/api/v1/task").json()["progress"]["labelled"] == 0
    assert client.post("/api/v1/labels", json=press, headers={"Origin": "http://localhost:7860"}).status_code == 200


def test_bad_requests_change_nothing(client: Any) -> None:
    token = client.get("/api/v1/task").json()["token"]
    good = {"client_uuid": "12345678", "token": token, "choice": "a"}
    bad: Any
    for bad in ({**good, "choice": "c"}, {**good, "client_uuid": ""}, {**good, "extra": 1}, {"token": token}, []):
        assert client.post("/api/v1/labels", json=bad).status_code == 422
    assert client.post("/api/v1/labels", json={**good, "token": "made-up"}).status_code == 409
    assert client.get("/api/v1/task").json()["token"] == token


def test_every_task_gives_the_browser_exactly_these_keys(client: Any) -> None:
    keys = {"token", "prompt", "answers", "progress", "guideline", "changed"}
    assert client.get("/api/v1/task").json().keys() == keys


def test_a_report_is_shown_without_being_able_to_run_scripts(compared: Any) -> None:
    from fastapi.testclient import TestClient

    (compared.dir / "compare" / "report.html").write_text("<script>alert(1)</script>")
    client = TestClient(run_app(compared.dir), base_url="http://127.0.0.1:7860")
    assert "/reports/compare" in client.get("/").text and "/label" not in client.get("/").text
    answer = client.get("/reports/compare")
    assert answer.status_code == 200 and "script-src" not in answer.headers["content-security-policy"]
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert client.get("/reports/..%2f..%2fetc").status_code == 404
    assert client.get("/reports/reward").status_code == 404


def test_sides_of_the_pairs_on_screen_do_not_follow_the_order_of_sampling(client: Any) -> None:
    """Over many annotators the answer that was sampled first is on the left about half of the time."""
    left: Counter[str] = Counter()
    for number in range(120):
        client.app.state.annotator = f"annotator {number}"
        left[client.get("/api/v1/task").json()["answers"][0]] += 1
    assert len(left) == 2 and min(left.values()) > 25
