"""The page of a reward model: what it says of a report card on disk, and that it trusts no text."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from looking import Page, launched
from preferences import pair

from reward.card.evaluate import ScoredPairs, mistakes, report_card
from reward.card.page import write_report
from reward.config import RewardConfig
from reward.probe import CurvePoint, ProbeScores
from reward.report import Learnt, RewardReport, SecondReportCard, StartChoice, Stress
from trueup.artifacts.reports import Share
from trueup.config import SplitConfig
from trueup.data.records import Preference, write_rows
from trueup.models.config import ModelConfig
from trueup.pages import wording
from trueup.runs import StageRun

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</blockquote></details><svg onload=\"document.title = 'owned'\">",
    "{{ 7 * 7 }}{% raw %}<!-- ",
    "a" * 400,
    " \n ",
]
ANSWERS = ["A stitch in time saves nine.", "Water the roots, not the leaves, since wet leaves rot.", "It depends."]


def share(value: float, low: float, high: float) -> Share:
    return Share(value=value, ci_low=low, ci_high=high, n=60, prompts=60)


STRESS = Stress(
    scores_higher={
        "cut before the end": share(0.45, 0.33, 0.58),
        "flattery in front": share(0.05, 0.01, 0.14),
        "wrong script": share(0.0, 0.0, 0.06),
    },
    answers=60,
    seconds=2.4,
)


def labelled(count: int, texts: list[str]) -> list[Preference]:
    draw = random.Random(0)
    pairs = []
    for i in range(count):
        chosen, rejected = draw.choice(texts), draw.choice(texts)
        keys = {"category": draw.choice(["letters", None]), "strength": draw.choice([None, 1, 2, 3])}
        pairs.append(pair(i // 2, chosen, rejected, annotator=texts[i % 2], **keys))
    return pairs


LEARNT = Learnt(labels=90, comparisons=100, ties=5, graded=40, below_others=4, ideal=0, tie_threshold=0.4)


def made(folder: Path, heldout: int = 240, texts: list[str] = ANSWERS, right: float = 0.7) -> tuple[StageRun, Any, Any]:
    """A stage at work whose reward model is right in a share of the pairs; its report, and its mistakes."""
    directory = folder / "demo" / "reward"
    directory.mkdir(parents=True)
    config = RewardConfig(run_dir=folder / "demo", model=ModelConfig(), split=SplitConfig())
    stage = StageRun(config, directory, False, [])
    draw = random.Random(1)
    pairs = labelled(heldout, texts)
    margins = [draw.expovariate(0.5) * (1 if draw.random() < right else -1) for _ in pairs]
    scored = ScoredPairs(pairs, margins, [0.0] * heldout)
    curve = {1 / parts: CurvePoint(100 // parts, [[draw.gauss(0.3, 1) for _ in pairs]] * parts) for parts in (4, 1)}
    probe = ProbeScores([(draw.random(), 0.4) for _ in pairs], f"layer 3 of 6 {texts[0]}", curve)
    train = labelled(100, texts)
    overlap = [pair(i, "a", "b", annotator=name) for i in range(30) for name in ("ann", "bob")]
    card = report_card(train, scored, stage, overlap, probe, STRESS)
    second = SecondReportCard(**dict(card), learnt=LEARNT, merge=None)
    write_rows(
        directory / "metrics.jsonl",
        [
            {"step": i, "loss": 0.69 - 0.002 * i + draw.gauss(0, 0.01), "accuracy": 0.6, "margin": 0.01 * i}
            for i in range(1, 60)
        ],
    )
    return stage, RewardReport(**dict(card), learnt=LEARNT, judge=second), mistakes(scored)


def page(stage: StageRun, report: RewardReport, rows: Any) -> str:
    write_report(stage, report, rows)
    assert not list(stage.dir.glob("*.partial"))
    return (stage.dir / "report.html").read_text(encoding="utf-8")


def test_the_verdict_stands_first_and_the_accuracy_beside_what_it_must_beat_and_what_it_cannot(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path)
    text = Page(page(stage, report, rows)).text
    assert stage.verdict.status == "warn"
    verdict, _, rest = text.partition("Is it better than chance")
    assert "To be used with care" in verdict and "A coin gets 50" in verdict and "worse texts score higher" in verdict
    for name in ("reward model", "second reward model", "bag of words", "probe of the model before training"):
        assert name in rest
    assert "ceiling: a perfect model" in rest and "72.5 % [66.2, 78.3]" in rest
    assert "layer 3 of 6" in rest and "learnt from the training pairs which words are preferred" in rest


def test_the_page_says_what_was_learnt_from_and_what_more_labels_were_worth_to_a_probe(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path)
    text = Page(page(stage, report, rows)).text
    assert "100 comparisons: 5 ties, 40 with a grade, 4 of an answer that was found bad" in text
    choice = StartChoice(reason="layer 1", kept_prompts=20, loss_at_start=0.5, loss_trained=0.625, step=0)
    undone = Page(page(stage, report.model_copy(update={"start": choice}), rows)).text
    assert "training undone" in undone and "loss 0.625 trained and 0.500 at the start, on 20 training" in undone
    curve = text.partition("Would more labels help?")[2].partition("Is it right as often")[0]
    assert "The accuracy of the probe" in curve and "100 prompts" in curve and "25 prompts" in curve
    assert (
        report.learning_curve and wording.percent(report.learning_curve[0].accuracy.value).replace("\xa0", " ") in curve
    )


def test_the_mistakes_are_shown_with_both_answers_and_both_scores(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path)
    found = Page(page(stage, report, rows))
    assert len(rows) == 10 and sum(tag == "details" for tag, _ in found.tags) == 10
    assert found.text.count("preferred by the annotator") == found.text.count("scored higher by the model") == 10
    assert rows[0].chosen in found.text and wording.quantity(rows[0].chosen_score) in found.text


def test_slices_and_confidence_are_there_and_a_slicing_of_one_is_left_out(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path)
    text = Page(page(stage, report, rows)).text
    assert "much better" in text and "letters" in text and "Calibration error" in text
    assert "Source of the label" not in text, "all are of one source"


def test_a_model_that_nobody_could_measure_has_a_page_that_says_so(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path, heldout=0)
    text = Page(page(stage, report, rows)).text
    assert "Not measured" in text and "No labelled prompt is held out" in text and "ceiling" not in text.split("How")[0]


def test_a_model_that_fails_is_called_one(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path, right=0.5)
    assert "Not to be believed" in Page(page(stage, report, rows)).text


def test_no_text_of_a_model_or_a_person_becomes_part_of_the_page(tmp_path: Path) -> None:
    stage, report, rows = made(tmp_path, texts=HOSTILE)
    html = page(stage, report, rows)
    found = Page(html)
    assert not {tag for tag, _ in found.tags} & {"script", "img", "iframe", "object"}
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert not str(attributes.get("href", "")).startswith(("http", "javascript"))
    assert f'content="{wording.report_policy()}"'.replace("'", "&#39;") in html
    assert "{{ 7 * 7 }}" in html


# ---- In a browser -----------------------------------------------------------------------------------------------


browser = pytest.fixture(launched, scope="module")


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280])
def test_the_page_fits_a_narrow_and_a_wide_screen_asks_nobody_and_shuts_nobody_out(
    tmp_path: Path, browser: Any, width: int, scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    stage, report, rows = made(tmp_path, texts=[*HOSTILE, *ANSWERS])
    html = page(stage, report, rows)
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    opened.goto((stage.dir / "report.html").as_uri())
    for details in opened.query_selector_all("details:not([open])"):
        details.evaluate("element => element.open = true")
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.title() == "demo: reward model"
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == [] and errors == []
    opened.set_content(html.replace("http-equiv", "data-policy"))  # axe is a script, which the page's policy forbids
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    opened.close()
