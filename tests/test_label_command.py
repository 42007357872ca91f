"""`trueup label` on a fresh directory: people label while the rest is sampled. Real processes over a tiny model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

import chaos
from trueup import runs
from trueup.campaign import Campaign, load_campaign
from trueup.cli import main
from trueup.commandline.running import locked
from trueup.data.records import Ranking, read_jsonl, read_rows
from trueup.errors import StageFailed
from trueup.stages import load_object
from ui.label.run import prepare
from ui.label.sampling import Sampling, needs_sampling, sampling_for
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tasks import Judgement, Settings

PROMPTS, HELD = 40, 4
"""Prompts, and how many of them are answered at least when the sampler is held."""


@pytest.fixture
def fresh(campaign: Callable[..., Any], tmp_path: Path) -> Callable[..., Campaign]:
    """A campaign of people's labels without SFT, in which nothing has run."""

    def make(**label: Any) -> Campaign:
        made = campaign(
            tmp_path,
            sft=None,
            sample={"batch_size": 3, "max_new_tokens": 16},
            label={"source": "human", "repeat_share": 0, "gold_share": 0, **label},
        )
        lines = "".join(f'{{"prompt": "Tell me about {i} things."}}\n' for i in range(PROMPTS))
        (tmp_path / "prompts.jsonl").write_text(lines, encoding="utf-8")
        return load_campaign(made.source)

    return make


class Labelling:
    """`trueup label` in a process of its own, whose sampler is stopped as soon as it has answered a few prompts."""

    def __init__(self, campaign: Campaign):
        self.campaign = campaign
        self.url = campaign.stages["label"].store_url  # type: ignore[attr-defined]
        self.folder = runs.stage_dir(campaign.run_dir, "sample")
        self.lines: list[str] = []
        command = [sys.executable, "-m", "trueup", "label", str(campaign.source), "--port", "0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.before = self.answered()
        threading.Thread(target=self._read, daemon=True).start()
        threading.Thread(target=self._hold, daemon=True).start()

    def open(self) -> None:
        """Wait until the page is there and the sampler is held."""
        self.wait(lambda: self.said(r"open (http://[^/]+)/enter"), "the page does not open")
        address = self.said(r"open (http://[^/]+)/enter")
        assert address is not None
        self.address = address[1]
        self.wait(lambda: self.held is not None, "the sampler was not held")

    held: psutil.Process | None = None

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    def _hold(self) -> None:
        while self.process.poll() is None and self.held is None:
            if self.answered() >= self.before + HELD:
                for child in psutil.Process(self.process.pid).children():
                    if child.cmdline()[-1:] == ["sample"]:
                        child.suspend()
                        self.held = child
            time.sleep(0.005)

    def answered(self) -> int:
        with suppress(FileNotFoundError):
            return (self.folder / runs.ANSWERED).read_bytes().count(b"\n")
        return 0

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def said(self, pattern: str) -> re.Match[str] | None:
        return re.search(pattern, self.text)

    def wait(self, condition: Callable[[], Any], problem: str, seconds: float = 180) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until and self.process.poll() is None, f"{problem}\n{self.text}"
            time.sleep(0.05)

    def finished(self) -> bool:
        return (self.folder / runs.MANIFEST).exists()

    def interrupt(self) -> int:
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == [], "it leaves no process behind"
        return code


@contextmanager
def labelling(campaign: Campaign) -> Iterator[Labelling]:
    running = Labelling(campaign)
    try:
        running.open()
        yield running
    finally:
        if running.held is not None:
            with suppress(psutil.NoSuchProcess):
                running.held.kill()
        running.process.kill()
        running.process.wait()


def label_all(client: httpx.Client) -> tuple[list[str], str]:
    """Label whatever there is. Returns the labels' ids, and the state in the end."""
    ids: list[str] = []
    work = client.get("/api/v1/tasks").json()
    while work["tasks"]:
        token = work["tasks"][0]["token"]
        ids.append(f"press-{token}")
        response = client.post("/api/v1/labels", json={"client_uuid": ids[-1], "token": token, "choice": "a"})
        assert response.status_code == 200, response.text
        work = response.json()
    return ids, work["state"]


def news(client: httpx.Client) -> str | None:
    """What the admin's page says of the sampling."""
    found = re.search(r"<p data-news>(.*?)</p>", client.get("/api/v1/admin/summary.html").text, re.DOTALL)
    return found and found[1]


def signed_in(running: Labelling) -> tuple[httpx.Client, httpx.Client]:
    """An annotator, and the person at this machine."""
    from ui.people.accounts import People

    store = Store(running.url)
    admin = People(store).open_session(None)
    store.close()
    annotator = next(iter(chaos.let_in(running.url, 1).values())) if running.before == 0 else admin
    return tuple(chaos.signed_in(running.address, cookie, timeout=60) for cookie in (annotator, admin))  # type: ignore[return-value]


@pytest.mark.timeout(600)
def test_people_label_while_the_rest_is_sampled_and_their_labels_are_exported(
    fresh: Callable[..., Campaign], capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = fresh(target_labels=3)
    with labelling(campaign) as running:
        client, admin = signed_in(running)
        assert not running.finished()
        early, state = label_all(client)
        assert state == "waiting" and len(early) >= 3
        progress = re.match(rf"(\d+) of {PROMPTS} prompts are answered so far; further pairs come", news(admin) or "")
        assert progress and HELD <= int(progress[1]) < PROMPTS
        assert client.get("/api/v1/admin/summary.html").status_code == 403, "annotators label, and no more"

        assert running.held is not None
        running.held.resume()
        running.wait(lambda: client.get("/api/v1/tasks").json()["tasks"], "no further pair comes")
        running.wait(running.finished, "sampling does not end")
        running.wait(lambda: news(admin) is None, "the admin's page still waits")
        later, state = label_all(client)
        assert state == "done" and later
        assert running.interrupt() == 0
    asked = asked_about(campaign.stages["label"])
    assert main(["run", str(campaign.source), "--until", "label"]) == 0
    rankings = read_rows(runs.stage_dir(campaign.run_dir, "label") / "rankings.jsonl", Ranking)
    assert {row.label_id for row in rankings} == {*early, *later}

    # The same questions as when nobody labels before the last answer.
    label = campaign.stages["label"].model_copy(
        update={"store": f"sqlite:///{campaign.run_dir.parent / 'late.sqlite'}"}
    )
    prepared = Store(label.store_url)  # type: ignore[attr-defined]
    prepare(label, prepared)  # type: ignore[arg-type]
    assert asked == prepared.asked()
    prepared.close()
    parent = runs.open_stage(campaign.run_dir, "label").manifest.parents[0]
    assert parent.manifest_sha256 == runs.open_stage(campaign.run_dir, "sample").sha256


def asked_about(label: Any) -> dict[str, Any]:
    store = Store(label.store_url)
    try:
        return store.asked()
    finally:
        store.close()


@pytest.mark.timeout(600)
def test_a_sampler_that_is_killed_is_told_and_the_same_command_continues(fresh: Callable[..., Campaign]) -> None:
    campaign = fresh()
    with labelling(campaign) as running:
        client, admin = signed_in(running)
        task = client.get("/api/v1/tasks").json()["tasks"][0]
        assert running.held is not None
        running.held.kill()
        running.wait(lambda: "killed by signal 9" in (news(admin) or ""), "the admin's page does not say it")
        told = rf"\d+ of {PROMPTS} prompts are answered so far. sample was killed by signal 9 .*Labels are kept"
        assert running.said(told) and "Traceback" not in running.text
        press = {"client_uuid": "after-the-crash", "token": task["token"], "choice": "b"}
        assert client.post("/api/v1/labels", json=press).status_code == 200
        assert label_all(client)[1] == "waiting", "there are further pairs, once the command is started again"
        labels = chaos.stored(running.url)
        kept = running.answered()
        assert running.interrupt() == 0
    with labelling(campaign) as running:  # Ctrl-C in the middle stops both, and keeps what is answered
        assert running.before == kept and running.said(rf"resume +{kept} prompts are answered already")
        assert running.held is not None
        running.held.resume()
        assert running.interrupt() == 0
        assert running.said(rf"\d+ of {PROMPTS} prompts are answered so far; the same command continues")
        assert not running.finished() and running.answered() >= kept + HELD
    with locked(campaign.run_dir):
        pass  # nobody holds the run any more
    assert chaos.stored(running.url) == labels
    assert main(["sample", str(campaign.source)]) == 0
    rows = [row["prompt_id"] for _, row in read_jsonl(running.folder / "candidates.jsonl")]
    assert len(set(rows)) == PROMPTS


def test_a_draw_over_all_pairs_waits_for_the_last_answer(fresh: Callable[..., Campaign]) -> None:
    campaign = fresh(selection="uncertainty")
    label: Any = campaign.stages["label"]
    assert needs_sampling(label)
    states = []
    with Sampling(campaign, label) as sampling:
        sampling.wait_for_first()
        service = LabelService(sampling.store)
        sampling.serve(service)
        while (told := sampling.news()) is not None:
            states.append((service.work("ann").state, bool(sampling.store.asked())))
            assert "labelling begins when all are answered" in told
            time.sleep(0.01)
        assert service.work("ann").state == "work"
        assert {entry.selection for entry in sampling.store.asked().values()} == {"random", "uncertainty"}
    assert ("waiting", False) in states
    assert not needs_sampling(label)


def test_a_sampler_that_cannot_begin_stops_the_command(
    fresh: Callable[..., Campaign], capfd: pytest.CaptureFixture[str]
) -> None:
    campaign = fresh()
    (campaign.run_dir.parent / "prompts.jsonl").write_text('{"prompt": ""}\n', encoding="utf-8")
    label: Any = campaign.stages["label"]
    with pytest.raises(StageFailed, match=r"sample: .*prompts\.jsonl"), Sampling(campaign, label) as sampling:
        sampling.wait_for_first()


def test_in_a_further_round_all_answers_are_there_before_the_page_opens(
    fresh: Callable[..., Campaign], capsys: pytest.CaptureFixture[str]
) -> None:
    campaign = load_campaign(fresh(target_labels=PROMPTS).source, ["rounds=2"])
    for name in ("sft", "sample", "label", "reward", "align"):
        stage: Any = campaign.stages[name]
        if name == "label":
            store = Store(stage.store_url)
            prepare(stage, store)
            service = LabelService(store, Settings.of(stage))
            while tasks := service.tasks("ann"):
                service.label("ann", Judgement(f"press-{tasks[0].token}", tasks[0].token, "a"))
            store.close()
        load_object(stage.run)(stage)
    label: Any = campaign.stages["round-2/label"]
    assert needs_sampling(label)
    assert sampling_for(campaign, label) is None, "nothing is sampled beside the page"
    assert "round 2: the page opens when all are sampled and scored" in capsys.readouterr().out
    assert runs.find_stage(campaign.run_dir, "round-2/sample") and not needs_sampling(label)


@pytest.mark.parametrize("label", [{"source": "simulated"}, {"source": "import", "path": "p.jsonl"}])
def test_nothing_is_sampled_for_labels_that_people_do_not_give(fresh: Callable[..., Campaign], label: Any) -> None:
    assert not needs_sampling(fresh(**label).stages["label"])  # type: ignore[arg-type]
