"""The report page: what it shows of a run on disk, that it trusts no text, and how it opens in a browser."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rlhf import report
from rlhf.config import CompareConfig
from trueup import runs
from trueup.config import ModelConfig, SplitConfig
from trueup.records import write_rows

HOSTILE = [
    "<script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\">",
    "</blockquote></section><svg onload=\"document.title = 'owned'\">",
    "{{ 7 * 7 }}{% raw %}<!-- ",
    "javascript:document.title='owned' &lt;b&gt; \u202e backwards",
    "a" * 400,
]
FIGURES = {"value": 0.68, "ci_low": 0.623, "ci_high": 0.735, "n": 48}
MESSAGE = (
    "The aligned policy learnt this preference: it wins 68.0 % [62.3, 73.5] of comparisons on 24 held-out prompts."
)


def fake_run(folder: Path, texts: list[str], prompts: int = 24, category: str = "question_answering") -> Path:
    """What all stages leave on disk, made up: `texts` are the answers, over and over."""
    draw = random.Random(0)
    run_dir = folder / "fake"
    made_from = {
        "sample": ["sft"],
        "label": ["sample"],
        "reward": ["sft", "label"],
        "align": ["sft", "label"],
        "compare": ["align"],
    }
    for number, (stage, directory) in enumerate(runs.DIRECTORIES.items()):
        parents = [
            {"stage": parent, "manifest_sha256": parent.encode().hex().ljust(64, "0")}
            for parent in made_from.get(stage, [])
        ]
        finding = {"level": "warn", "code": "few_labels", "message": f"a finding of {stage} <b>bold</b>"}
        manifest: dict[str, Any] = {
            "stage": stage,
            "duration_s": 61.5 * (number + 1),
            "device": "cpu",
            "dtype": "float32",
            "parents": parents,
            "inputs": [{"path": f"/data/{stage}.jsonl", "sha256": "ab" * 32, "rows": 352, "dropped": {"too long": 3}}],
            "verdict": {"status": "warn", "findings": [finding]},
        }
        if stage in ("sft", "reward", "align"):
            manifest["tokens_per_s"] = 257.5
        (run_dir / directory).mkdir(parents=True)
        (run_dir / directory / "manifest.json").write_text(json.dumps(manifest))
    for stage in ("sft", "reward"):
        rows = [{"step": i, "loss": 2 + math.exp(-i / 20) + draw.gauss(0, 0.2)} for i in range(1, 63)]
        write_rows(run_dir / stage / "metrics.jsonl", [*rows, {"step": 62, "eval_loss": 2.1}])
    steps: list[dict[str, Any]] = []
    for i in range(1, 101):
        margin = i / 40 + draw.gauss(0, 0.3)
        rewards = {"rewards/margins": margin, "rewards/chosen": margin / 3, "rewards/rejected": -2 * margin / 3}
        logps = {"logps/chosen": -60 - i / 10 + draw.gauss(0, 4), "logps/rejected": -62 - i / 4 + draw.gauss(0, 4)}
        loss = math.log1p(math.exp(-margin))
        steps.append({"step": i, "loss": loss, "rewards/accuracies": min(1, 0.5 + i / 150), **rewards, **logps})
    write_rows(run_dir / "align" / "metrics.jsonl", steps)
    baselines = {"shorter or longer": {"value": 0.52, "ci_low": 0.41, "ci_high": 0.62, "n": 90}}
    (run_dir / "reward" / "report.json").write_text(
        json.dumps({"accuracy": {"value": 0.79, "ci_low": 0.68, "ci_high": 0.87, "n": 90}, "baselines": baselines})
    )
    write_rows(run_dir / "compare" / "samples.jsonl", fake_rows(texts, prompts, category, draw))
    (run_dir / "compare" / "report.json").write_text(json.dumps(FAKE_REPORT))
    return run_dir


def fake_rows(texts: list[str], prompts: int, category: str, draw: random.Random) -> list[dict[str, Any]]:
    def answer(i: int, mean: float) -> dict[str, Any]:
        scores = {"rubric": draw.random() * 10, "reward_model": draw.gauss(0, 1)}
        tokens = max(1, min(48, round(draw.gauss(mean, 9))))
        return {
            "text": texts[i % len(texts)],
            "finished": i % 4 > 0,
            "num_tokens": tokens,
            "logp": -50.0,
            "scores": scores,
        }

    return [
        {
            "prompt_id": f"{i:016x}",
            "prompt": [{"role": "user", "content": f"Question {i}: {texts[i % len(texts)]}"}],
            "category": category,
            "reference": [answer(i + k, 32) for k in range(2)],
            "aligned": [answer(i + k + 1, 27) for k in range(2)],
            "win_share": {"rubric": (1.0, 0.75, 0.5, 0.25)[i % 4], "reward_model": 0.5},
        }
        for i in range(prompts)
    ]


def both(reference: float | None, aligned: float | None) -> dict[str, float | None]:
    return {"reference": reference, "aligned": aligned}


COUNTED = {"wins": 31, "ties": 4, "losses": 13}
FAKE_REPORT: dict[str, Any] = {
    "policies": {"reference": {"stage": "sft"}, "aligned": {"stage": "align", "algorithm": "dpo"}},
    "prompts": 24,
    "samples_per_prompt": 2,
    "confidence": 0.95,
    "decoding": {"max_new_tokens": 48, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": 0},
    "sources": {"simulated": 271},
    "judges": {
        "rubric": {
            "description": "rubric says-why, simulated",
            "made_the_labels": True,
            "win_rate": {**FIGURES, **COUNTED},
            "length_controlled_win_rate": {**FIGURES, "value": 0.66, "slope": -0.1, "note": None},
            "minimum_detectable_effect": 0.081,
        },
        "reward_model": {
            "description": "the reward model, learnt from the same labels",
            "made_the_labels": True,
            "win_rate": {"value": 0.71, "ci_low": 0.64, "ci_high": 0.77, **COUNTED, "n": 48},
            "length_controlled_win_rate": {
                **FIGURES,
                "value": 0.7,
                "slope": 0.2,
                "note": "length decides <nearly> all",
            },
            "minimum_detectable_effect": None,
        },
    },
    "kl_nats": {"value": 2.03, "ci_low": 1.6, "ci_high": 2.5, "n": 24, "samples_per_prompt": 1},
    "identical_answers": 0.031,
    "length_tokens": both(31.8, 27.2),
    "eos_rate": both(0.795, 0.97),
    "distinct_2": both(0.612, 0.588),
    "repetition": both(0.09, 0.03),
    "heldout_loss": {**both(2.879, None), "note": "elsewhere"},
    "verdict": {"status": "pass", "code": "learnt_preference", "message": MESSAGE},
}


class Page(HTMLParser):
    """The tags and the visible text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def page(tmp_path: Path) -> Path:
    run_dir = fake_run(tmp_path, HOSTILE)
    report.write_report(run_dir)
    return run_dir / "compare" / "report.html"


def test_the_verdict_stands_before_everything_else(page: Path) -> None:
    text = Page(page.read_text()).text
    assert MESSAGE in text
    assert text.index(MESSAGE) < text.index("Who labelled") < text.index("Cost")


def test_simulated_labels_are_called_so_and_no_person_is_counted(page: Path) -> None:
    text = Page(page.read_text()).text
    assert "simulated a written rubric; no person said these 271" in text
    assert "human people, in the browser 0" in text


def test_every_figure_of_the_judges_is_there(page: Path) -> None:
    text = Page(page.read_text()).text
    for shown in (
        "68.0 % [62.3, 73.5]",
        "71.0 % [64.0, 77.0]",
        "66.0 %",
        "31 won, 4 tied, 13 lost",
        "Could detect 8.1",
    ):
        assert shown in text
    assert "not independent evidence" in text


def test_baselines_stand_beside_the_reward_model(page: Path) -> None:
    text = Page(page.read_text()).text
    assert "reward model 79.0 % [68.0, 87.0] shorter or longer 52.0 % [41.0, 62.0]" in text


def test_measures_that_were_not_taken_are_said_not_to_be(page: Path) -> None:
    assert "2.879 not measured" in Page(page.read_text()).text


def test_findings_cost_and_lineage_of_every_stage_are_there(page: Path) -> None:
    text = Page(page.read_text()).text
    for stage in runs.DIRECTORIES:
        assert f"a finding of {stage} <b>bold</b>" in text
    assert "all stages 21 min 32 s" in text  # 61.5 s times 1 + 2 + ... + 6
    assert "258 cpu, float32" in text
    assert "sft.jsonl abababababab , 352 rows used; dropped: 3 too long" in text


def test_training_curves_are_drawn_for_what_was_logged(page: Path) -> None:
    labels = [
        attributes["aria-label"]
        for tag, attributes in Page(page.read_text()).tags
        if tag == "svg" and "aria-label" in attributes
    ]
    assert labels == [
        "histogram of tokens: SFT, aligned",
        "loss over step: loss",
        "loss over step: loss",
        "loss over step: loss",
        "implicit rewards over step: chosen, rejected",
        "reward margin over step: margin",
        "share of pairs ordered rightly over step: accuracy",
        "log-probability, nats over step: chosen, rejected",
    ]


def test_no_text_of_a_model_becomes_markup(page: Path) -> None:
    parsed = Page(page.read_text())
    assert {tag for tag, _ in parsed.tags} & {"script", "img", "iframe", "object", "a", "form", "base"} == set()
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on")]
    for text in HOSTILE:
        assert " ".join(text.split()) in parsed.text


def test_a_hostile_category_or_judge_is_text_too(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["fine"], category=HOSTILE[0])
    report.write_report(run_dir)
    assert "<script" not in (run_dir / "compare" / "report.html").read_text()


def test_the_page_asks_nobody_for_anything(page: Path) -> None:
    html = page.read_text()
    assert not re.search(r"https?://|//cdn|@import|url\(", html)
    assert "default-src 'none'" in html


def test_a_run_that_is_only_half_there_still_has_a_page(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["An answer."])
    for folder in ("reward", "labels"):
        shutil.rmtree(run_dir / folder)
    for folder in ("sft", "align"):
        (run_dir / folder / "metrics.jsonl").unlink()
    bare = {**FAKE_REPORT, "sources": {}, "judges": {"rubric": FAKE_REPORT["judges"]["rubric"]}}
    (run_dir / "compare" / "report.json").write_text(json.dumps(bare))
    report.write_report(run_dir)
    text = Page((run_dir / "compare" / "report.html").read_text()).text
    assert "it has no label report" in text
    assert "more than a ruler" not in text
    assert "not independent evidence" not in text


def test_the_stage_at_work_is_shown_with_what_it_has_found_so_far(tmp_path: Path) -> None:
    run_dir = fake_run(tmp_path, ["An answer."])
    (run_dir / "compare" / "manifest.json").unlink()
    config = CompareConfig(run_dir=run_dir, model=ModelConfig(), split=SplitConfig(), judges=["rubric"])
    parents = [runs.open_stage(run_dir, stage) for stage in config.parents()]
    stage = runs.StageRun(config, run_dir / "compare", False, parents)
    stage.find("warn", "longer", "answers are 1.7 times as long")
    stage.facts.update(device="cpu", dtype="float32")
    report.write_report(run_dir, stage)
    text = Page((run_dir / "compare" / "report.html").read_text()).text
    assert "answers are 1.7 times as long" in text
    assert "written after this page" in text


# ---- Examples ---------------------------------------------------------------------------------------------------


def rows_with(shares: list[float]) -> list[dict[str, Any]]:
    return [{"prompt_id": str(i), "win_share": {"rubric": share}} for i, share in enumerate(shares)]


def test_examples_are_four_of_each_kind_and_drawn_by_the_seed() -> None:
    rows = rows_with([1.0] * 20 + [0.0] * 20 + [0.5] * 20)
    picked = report.pick_examples(rows, "rubric", 3)
    assert [len(chosen) for _, chosen in picked] == [4, 4, 4]
    assert [{row["win_share"]["rubric"] for row in chosen} for _, chosen in picked] == [{1.0}, {0.0}, {0.5}]
    assert picked == report.pick_examples(rows, "rubric", 3)
    assert picked != report.pick_examples(rows, "rubric", 4)


def test_where_there_are_few_ties_others_fill_up_and_nothing_is_shown_twice() -> None:
    picked = report.pick_examples(rows_with([1.0] * 9 + [0.25] * 3 + [0.5]), "rubric", 0)
    assert [len(chosen) for _, chosen in picked] == [4, 3, 1, 3]
    shown = [row["prompt_id"] for _, chosen in picked for row in chosen]
    assert len(shown) == len(set(shown))


def test_kinds_that_do_not_occur_have_no_heading() -> None:
    assert [kind for kind, _ in report.pick_examples(rows_with([0.5] * 3), "rubric", 0)] == ["Neither wins more"]


# ---- In a browser -----------------------------------------------------------------------------------------------


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1400])
def test_it_opens_at_any_width_without_a_request_an_error_or_a_sideways_scroll(
    page: Path, browser: Any, width: int, scheme: str
) -> None:
    opened = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    opened.goto(page.as_uri())
    opened.locator("summary").click()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert opened.title() == "fake: SFT and aligned policy compared"
    assert opened.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible(page: Path, browser: Any, scheme: str) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    context = browser.new_context(color_scheme=scheme, bypass_csp=True)  # axe is a script, which the page forbids
    opened = context.new_page()
    opened.goto(page.as_uri())
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
