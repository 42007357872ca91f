"""A campaign whose answers are sampled, and the web application on a free port."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import postgresql
import pytest
from looking import launched
from manifests import RATE, comparison_of, judge_of, manifest_of, verdict_of

from sft.config import SampleConfig, SFTConfig
from trueup import runs
from trueup.config import SplitConfig
from trueup.data.records import Candidate, CandidateSet, Message, prompt_id, write_rows
from trueup.data.split import split_name
from trueup.models.config import ModelConfig
from ui.labels.config import LabelConfig
from ui.labels.items import Item, QueueEntry, Text
from ui.labels.store import Store

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


# ---- A label store ----------------------------------------------------------------------------------------------


def make_pair(number: int, answers: tuple[str, ...] = ("first", "second, longer"), **values: Any) -> Item:
    """The n-th item: a question and its answers, each with its number."""
    prompt = [Message(role="user", content=f"question {number}")]
    texts: list[Any] = [Text(f"{answer} {number}") for answer in answers]
    sampler = values.get("sampler", {"policy_sha256": "p", "temperature": 0.5, "seed": 1})
    return Item(prompt, texts, "advice", "train", sampler)


@pytest.fixture
def make_item() -> Callable[..., Item]:
    return make_pair


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server without a database name. Where there is none, its tests are skipped aloud, or fail if
    TRUEUP_REQUIRE_POSTGRES=1."""
    bin, missing = postgresql.programs(), ""
    if bin is None:
        missing = "NO POSTGRESQL: the store is tested on SQLite alone (apt-get install postgresql)"
    elif importlib.util.find_spec("psycopg") is None:
        missing = "NO PSYCOPG: the store is tested on SQLite alone (pip install 'psycopg[binary]')"
    if missing:
        if os.environ.get("TRUEUP_REQUIRE_POSTGRES") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    assert bin is not None
    server = postgresql.Server(bin, tmp_path_factory.mktemp("postgres"))
    yield server.url
    server.crash()


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database: whatever is tested with it is tested on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'labels.sqlite'}"
    import sqlalchemy as sa

    address, name = request.getfixturevalue("postgres"), f"labels_{uuid.uuid4().hex}"
    engine = sa.create_engine(f"{address}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as db:
        db.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{address}/{name}"


@pytest.fixture
def asking(store_url: str) -> Iterator[Callable[..., Store]]:
    """Opens a store in which people are asked about so many pairs."""
    opened = []

    def ask(number: int, labels_per_pair: int = 1, answers: tuple[str, ...] = ("first", "second, longer")) -> Store:
        store = Store(store_url)
        opened.append(store)
        ids = store.add_items([make_pair(i, answers) for i in range(number)])
        store.ask([QueueEntry(name, "random", 0.25) for name in ids], labels_per_pair)
        return store

    yield ask
    for store in opened:
        store.close()


# ---- The pages --------------------------------------------------------------------------------------------------


def write_comparison(run_dir: Path) -> None:
    folder = runs.stage_dir(run_dir, "compare")
    folder.mkdir(parents=True)
    aligned = {"level": "info", "code": "better", "message": "The aligned policy is preferred, by the rubric."}
    finding = {"level": "warn", "code": "shorter", "message": "the aligned answers are <b>shorter</b> by a third"}
    unsure = {**RATE, "value": 0.55, "ci_low": None, "ci_high": None}
    unknown = {**judge_of()["length_controlled_win_rate"], "value": None}
    judges = {"rubric": judge_of(), "reward_model": judge_of(win_rate=unsure, length_controlled_win_rate=unknown)}
    report = comparison_of(judges=judges, verdict=verdict_of(message=aligned["message"]))
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    manifest = manifest_of("compare", verdict={"status": "warn", "findings": [aligned, finding]})
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    rows = [
        {
            "prompt_id": f"p{i}",
            "prompt": [{"role": "user", "content": f"Compared question {i}?"}],
            "category": "advice" if i % 2 else "explanation",
            "sft": [{"text": f"Old answer {i}", "finished": True, "scores": {"rubric": 0.25}}],
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
    from ui.app import listen
    from ui.people.connections import server

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
        if app.state.votes is not None:
            app.state.votes.close()


@pytest.fixture
def client(campaign: CampaignDir) -> Iterator[Any]:
    """The campaign's API behind its guard, without the pages, asked by the person at this machine."""
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from ui.label.run import prepare
    from ui.labels.service import LabelService
    from ui.labels.tasks import Settings
    from ui.pages.label_api import label_api
    from ui.people.accounts import COOKIE, People
    from ui.people.guard import Guard
    from ui.people.sites import site

    config = campaign.label()
    store = Store(config.store_url)
    prepare(config, store)
    app = FastAPI(openapi_url="/api/v1/openapi.json")
    app.state.people, app.state.service = People(store), LabelService(store, Settings.of(config))
    app.add_middleware(Guard, people=app.state.people, site=site("127.0.0.1", None, app.state.people))
    app.include_router(label_api(app.state.service))
    with TestClient(app, base_url="http://127.0.0.1") as asking:
        asking.cookies.set(COOKIE, app.state.people.open_session(None))
        yield asking
    store.close()


chromium = pytest.fixture(launched, scope="session")

# ---- What every page has to stand -------------------------------------------------------------------------------

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
    r"$\text{<img src=x onerror=window.hacked=11>}$",
    r"$$\text{&lt;img src=x onerror=window.hacked=12&gt;}$$",
    r'\(\href{javascript:window.hacked=13}{x}\) \(\class{y" onclick="window.hacked=14}{z}\)',
    "```html\n</code></pre><script>window.hacked = 15</script>\n```",
    "<math><mi xlink:href='javascript:window.hacked=16'>x</mi></math>",
]


@pytest.fixture
def context(chromium: Any) -> Iterator[Any]:
    """A browser of its own, with its own cookies."""
    made = chromium.new_context(viewport={"width": 1280, "height": 800})
    made.set_default_timeout(20_000)
    yield made
    made.close()


@pytest.fixture
def attacks() -> list[str]:
    """Model texts that would set `window.hacked`, or fetch something, on a page that trusts them."""
    return ATTACKS


@pytest.fixture
def serious() -> Callable[[Any], list[str]]:
    """`serious(page)`: what axe finds that shuts people out."""
    from axe_playwright_python.sync_playwright import Axe

    def found(page: Any) -> list[str]:
        violations = Axe().run(page).response["violations"]
        kept = [one for one in violations if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {one['nodes'][0]['html'][:160]}" for one in kept]

    return found


@pytest.fixture
def fits() -> Callable[[Any, int], None]:
    """`fits(page, width)`: every control of the bar and the top is in sight, and large enough for a finger."""

    def check(page: Any, width: int) -> None:
        for button in page.locator(".tu-bar button:visible, .tu-top button:visible").all():
            box = button.bounding_box()
            assert box["x"] >= 0 and box["height"] >= 44 and box["width"] >= 40, button.inner_text()
            if not button.evaluate("(e) => e.closest('.tu-criteria') !== null"):  # these scroll
                assert box["x"] + box["width"] <= width, button.inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    return check
