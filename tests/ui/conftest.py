"""A campaign whose answers are sampled, and the web application on a free port."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

from sft.config import SampleConfig, SFTConfig
from trueup import runs
from trueup.config import ModelConfig, SplitConfig
from trueup.records import Candidate, CandidateSet, Message, prompt_id, split_name, write_rows
from ui.config import LabelConfig

MODEL = ModelConfig()
SPLIT = SplitConfig()
SECRET = "policy-3f9ac1"
"""Stands in every piece of provenance; it must reach no labelling browser."""


def candidate_set(question: str, answers: list[str], category: str | None = "advice") -> CandidateSet:
    prompt = [Message(role="user", content=question)]
    return CandidateSet(
        prompt_id=prompt_id(prompt),
        prompt=prompt,
        category=category,
        split=split_name(prompt, SPLIT),
        candidates=[
            Candidate(text=text, token_ids=[7, place, len(text)], finished=True) for place, text in enumerate(answers)
        ],
        sampler={"policy_sha256": SECRET, "temperature": 0.987654, "seed": 0},
    )


def questions(number: int) -> list[CandidateSet]:
    return [
        candidate_set(
            f"Question {i}: how do I keep bread fresh?",
            [
                f"Wrap loaf {i} in a cloth and leave it on the counter.",
                f"Freeze loaf {i} in slices, so it keeps.",
                f"Eat loaf {i}.",
            ],
            "advice" if i % 2 else "explanation",
        )
        for i in range(number)
    ]


@dataclass
class CampaignDir:
    """A run directory with a finished `sample` stage."""

    dir: Path

    def sampled(self, rows: list[CandidateSet], seed: int = 0) -> None:
        prompts = self.dir.parent / "prompts.jsonl"
        prompts.write_text('{"prompt": "one"}\n', encoding="utf-8")
        sft = SFTConfig(model=MODEL, split=SPLIT, data=[{"path": prompts}], run_dir=self.dir)
        runs.begin(sft).finish()
        sample = runs.begin(SampleConfig(model=MODEL, split=SPLIT, prompts=prompts, run_dir=self.dir, seed=seed))
        write_rows(sample.dir / "candidates.jsonl", rows)
        sample.finish()

    def label(self, **values: Any) -> LabelConfig:
        return LabelConfig(**{"model": MODEL, "split": SPLIT, "run_dir": self.dir, **values})


# Test modules cannot import from here (pytest's importlib mode), so what they build with comes as fixtures.


@pytest.fixture
def answers_to() -> Callable[..., CandidateSet]:
    return candidate_set


@pytest.fixture
def secret() -> str:
    return SECRET


@pytest.fixture
def campaign(tmp_path: Path) -> CampaignDir:
    made = CampaignDir(tmp_path / "run")
    made.sampled(questions(6))
    return made


def write_comparison(run_dir: Path) -> None:
    folder = runs.stage_dir(run_dir, "compare")
    folder.mkdir(parents=True)
    rate = {"value": 0.71, "ci_low": 0.58, "ci_high": 0.81, "wins": 40, "ties": 5, "losses": 15, "n": 60}
    aligned = {"level": "info", "code": "better", "message": "The aligned policy is preferred, by the rubric."}
    finding = {"level": "warn", "code": "shorter", "message": "the aligned answers are <b>shorter</b> by a third"}
    controlled = {"value": 0.66, "ci_low": 0.5, "ci_high": 0.8, "slope": 0.1, "note": None}
    unsure = {**rate, "value": 0.55, "ci_low": None, "ci_high": None}
    report = {
        "policies": {"reference": {}, "aligned": {}},
        "confidence": 0.95,
        "judges": {
            "rubric": {"win_rate": rate, "length_controlled_win_rate": controlled},
            "reward_model": {"win_rate": unsure},
        },
        "verdict": {"status": "warn", "code": "better", "message": aligned["message"]},
    }
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    manifest = {"verdict": {"status": "warn", "findings": [aligned, finding]}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Compared question {i}?"}],
            "category": "advice" if i % 2 else "explanation",
            "reference": [{"text": f"Old answer {i}", "finished": True, "scores": {"rubric": 0.25}}],
            "aligned": [{"text": f"New answer {i} <img src=x onerror=boom()>", "finished": False, "scores": {}}],
        }
        for i in range(5)
    ]
    write_rows(folder / "samples.jsonl", rows)


Serve = Callable[[Any], str]


@pytest.fixture
def compared(campaign: CampaignDir) -> CampaignDir:
    """The campaign with a finished comparison."""
    write_comparison(campaign.dir)
    return campaign


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serves an application on a free port for as long as the test runs; gives its address."""
    from ui.app import listen, server

    started = []

    def start(app: Any) -> str:
        bound = listen("127.0.0.1", 0)
        running = server(app)
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        started.append((running, thread, app))
        deadline = time.monotonic() + 30
        while not running.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.02)
        return f"http://127.0.0.1:{bound.getsockname()[1]}"

    yield start
    for running, thread, app in started:
        running.should_exit = True
        thread.join(10)
        if app.state.service is not None:
            app.state.service.store.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A real browser. Where there is none, browser tests are skipped aloud, or fail if TRUEUP_REQUIRE_BROWSER=1."""
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        missing = "NO BROWSER: the labelling page is not tested (install chromium and playwright)"
        if os.environ.get("TRUEUP_REQUIRE_BROWSER") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        yield browser
        browser.close()
