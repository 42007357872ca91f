"""The comparison in a real browser: the verdict, the judges, and all policies' answers side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from manifests import judge_of

from trueup.data.records import write_rows
from trueup.pages.wording import report_policy, report_script
from ui.app import run_app
from ui.pages.compare import ALL, ANY, Comparison, Wanted, sample_html, summary_html
from ui.people.accounts import COOKIE
from ui.people.guard import REPORT_POLICY

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=boom()>"


@pytest.fixture
def folder(compared: Any) -> Any:
    """compare/ of a campaign, with all that a comparison can write: five prompts, the aligned policy wins 0 and 4."""
    made = compared.dir / "compare"
    report = json.loads((made / "report.json").read_text())
    rate = report["judges"]["rubric"]["win_rate"]
    report["judges"]["rubric"] |= {"description": "rubric says-why, simulated"}
    report["judges"]["endpoint"] = judge_of(
        win_rate=rate, independent=True, made_the_labels=False, description=f"a model {HOSTILE}"
    )
    report["noise_floor"] = {"rubric": {**rate, "value": 0.493, "ci_low": 0.45, "ci_high": 0.55}}
    report["verdict"] |= {"outcome": "improved_at_a_price"}
    (made / "report.json").write_text(json.dumps(report))
    rows = [json.loads(line) for line in (made / "samples.jsonl").read_text().splitlines()]
    for i, row in enumerate(rows):
        row["win_share"] = {"rubric": (1.0, 0.5, 0.25, None, 0.75)[i], "endpoint": 0.5}
        row["others"] = {"base": [{"text": f"Base answer {i} {HOSTILE}", "num_tokens": 4, "scores": {"rubric": -1.5}}]}
        row["sft"][0]["text"] = f"The old answer to question {i} {HOSTILE}"
        row["aligned"][0]["text"] = f"The new answer to question {i} {HOSTILE}"
    write_rows(made / "samples.jsonl", rows)
    return made


# ---- What it shows ----------------------------------------------------------------------------------------------


def test_no_judge_that_knows_the_labels_is_shown_as_independent(folder: Any) -> None:
    html = summary_html(Comparison(folder).report(), [])
    assert "The reward model learnt from the same labels: no independent evidence." in html
    assert "This judge made the labels that the policy learnt from" in html
    assert "Nothing that it knows was in the training of this policy." in html
    assert "SFT against itself" in html and "45.0% to 55.0%" in html


def test_prompts_are_chosen_by_category_and_by_whom_a_judge_prefers(folder: Any) -> None:
    comparison = Comparison(folder)

    def kept(category: str = ALL, winner: str = ANY, judge: str | None = "rubric") -> list[str]:
        return [row["prompt_id"] for row in comparison.samples(Wanted(category, winner, judge))]

    assert kept() == ["p0", "p1", "p2", "p3", "p4"]
    assert kept(winner="Aligned") == ["p0", "p4"]
    assert kept(winner="SFT") == ["p2"]
    assert kept(winner="Neither") == ["p1"]
    assert kept(winner="Neither", judge="endpoint") == kept()
    assert kept(winner="Aligned", judge=None) == ["p0", "p4"]
    assert kept("explanation", "Aligned") == ["p0", "p4"] and kept("advice", "Aligned") == []
    assert "No prompt fits this choice" in sample_html([], 0)


def test_what_differs_is_marked_on_demand_and_nothing_becomes_markup(folder: Any) -> None:
    rows = Comparison(folder).samples()
    plain, marked = (sample_html(rows, 2, diff) for diff in (False, True))
    assert "<ins>" not in plain
    assert "The <del>old</del> answer to question 2" in marked and "The <ins>new</ins> answer to question 2" in marked
    for html in (plain, marked, summary_html(Comparison(folder).report(), [], [("/run", HOSTILE)])):
        assert "<script" not in html and "<img" not in html
    assert "SFT 75\N{NO-BREAK SPACE}%" in plain and "\N{MINUS SIGN}1.50" in plain
    assert "not judged" in sample_html(rows, 3)


def test_rows_of_an_older_comparison_are_shown_with_what_they_have(compared: Any) -> None:
    html = sample_html(Comparison(compared.dir / "compare").samples(), 0)
    assert "Old answer 0" in html and "tu-leans" not in html and "Other policies" not in html


def test_a_report_may_run_its_own_script_and_nothing_else() -> None:
    rules = dict(rule.strip().partition(" ")[::2] for rule in REPORT_POLICY.split(";"))
    assert REPORT_POLICY.startswith(report_policy())
    assert rules["default-src"] == "'none'" and rules["sandbox"] == "allow-scripts"
    assert rules["script-src"].startswith("'sha256-") and " " not in rules["script-src"]
    assert set(rules) == {"default-src", "style-src", "script-src", "img-src", "frame-ancestors", "sandbox"}


# ---- In a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def opened(folder: Any, serve: Any, chromium: Any) -> Iterator[tuple[str, Any, list[str]]]:
    """The run served, a browser that may look, and all errors that the browser tells."""
    app = run_app(folder.parent)
    url, context = serve(app), chromium.new_context(viewport={"width": 1280, "height": 800})
    context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(None), "url": url}])
    page, said = context.new_page(), []
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    yield url, page, said
    context.close()


def choose(page: Any, field: str, name: str) -> None:
    page.locator(f"#{field} input").click()
    page.get_by_role("option", name=name, exact=True).click()


@pytest.mark.browser
def test_the_comparison_shows_the_verdict_and_browses_answers(opened: tuple[str, Any, list[str]]) -> None:
    url, page, said = opened
    page.goto(f"{url}/compare/")
    page.get_by_text("Improved, at a price").wait_for()
    assert "The aligned policy is preferred" in page.locator(".tu-verdict").inner_text()
    assert "the aligned answers are <b>shorter</b> by a third" in page.locator(".tu-verdict li").inner_text()
    row = page.get_by_role("row").filter(has_text="rubric says-why").inner_text()
    assert "71.0%" in row and "58.0% to 81.0%" in row and "66.0%" in row
    assert "40 won" in row and "5 tied" in row and "15 lost" in row
    assert "unknown" in page.get_by_role("row").filter(has_text="reward model").first.inner_text()
    assert page.locator("#pair").get_by_text(f"The new answer to question 0 {HOSTILE}").is_visible()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Compared question 1?").wait_for()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("1 of 5").wait_for()
    page.get_by_role("button", name="Previous").click()
    page.get_by_text("5 of 5").wait_for()
    choose(page, "category", "advice")
    page.get_by_text("1 of 2").wait_for()
    assert page.locator("#pair").inner_text().startswith("Compared question 1?")
    assert (said, page.title()) == ([], "Comparison · Trueup")


@pytest.mark.browser
def test_prompts_are_filtered_and_differences_marked_in_the_browser(opened: tuple[str, Any, list[str]]) -> None:
    url, page, said = opened
    page.goto(f"{url}/compare/")
    page.get_by_text("1 of 5").wait_for()
    choose(page, "winner", "Aligned")
    page.get_by_text("1 of 2").wait_for()
    choose(page, "judge", "endpoint")
    page.get_by_text("No prompt fits this choice").wait_for()
    choose(page, "winner", "Neither")
    page.get_by_text("1 of 5").wait_for()
    assert page.locator("#pair ins").count() == 0
    page.get_by_label("Mark what differs").check()
    page.locator("#pair ins").get_by_text("new", exact=True).wait_for()
    page.get_by_role("button", name="Next").click()
    page.get_by_text("Compared question 1?").wait_for()
    assert page.locator("#pair del").get_by_text("old", exact=True).is_visible()
    page.get_by_label("Mark what differs").uncheck()
    page.locator("#pair .tu-raw").first.wait_for(state="detached")
    assert page.get_by_text("2 of 5").is_visible()
    assert said == []


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 320)])
def test_it_is_accessible_and_leads_to_the_other_pages(
    opened: tuple[str, Any, list[str]], scheme: Any, width: int
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    url, page, _ = opened
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(f"{url}/compare/")
    page.get_by_text("1 of 5").wait_for()
    page.get_by_label("Mark what differs").check()
    page.locator("#pair ins").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.get_by_role("link", name="Run", exact=True).click()
    page.get_by_role("heading", name="Stages").wait_for()


@pytest.mark.browser
def test_a_served_report_runs_the_script_that_ships_and_no_other(
    folder: Any, opened: tuple[str, Any, list[str]]
) -> None:
    url, page, said = opened
    filters = '<div class="filters" hidden><input data-field="text"><p role="status"></p>'
    filters += "".join(f'<select data-field="{name}"></select>' for name in ("category", "judge", "winner", "order"))
    filters += '<button data-field="open"></button><button data-field="clear"></button></div><ol class="prompts"></ol>'
    ours = f"<script>{report_script()}</script>"
    (folder / "report.html").write_text(f"<title>report</title>{filters}{ours}{HOSTILE}")
    page.goto(f"{url}/reports/compare")
    assert page.locator(".filters").is_visible()  # which the script shows
    assert page.title() == "report"
    assert len([text for text in said if "Content Security Policy" in text]) == len(said) > 0
