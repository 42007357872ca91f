"""The open mode on a tiny run, with the real process behind it: what streams, what is refused, and the page."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from looking import intercept
from manifests import comparison_of

from trueup.data.records import Message, write_rows
from ui.app import listen, run_app
from ui.pages.worker import WAITING, Job, Stepped, Stopped, Work, pieces
from ui.people.accounts import COOKIE
from ui.people.connections import server

ASKED = "Tell me about blue things."
HOSTILE = "<img src=x onerror=hacked=1><script>hacked=2</script>\n🙂 [a](javascript:hacked=3) </div>"
"""What is answered to it."""
SHORT = {"prompt": "What is blue?", "policies": ["sft", "aligned"], "max_new_tokens": 12, "temperature": 0.9, "seed": 5}
ENDLESS = "Go on."
"""What is answered to this never ends, so that there is time to stop it, or to load the page again."""
LONG = {"prompt": ENDLESS, "policies": ["sft", "aligned"], "max_new_tokens": 3000, "temperature": 0}

# ---- A run, and its server --------------------------------------------------------------------------------------


def learn_by_heart(folder: Path) -> None:
    """Train the model in `folder` until it knows both answers, and give it a long context."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trueup.models.chat import encode_demonstration
    from trueup.models.config import ModelConfig
    from trueup.models.templates.choice import set_template

    tokenizer = AutoTokenizer.from_pretrained(folder)
    set_template(tokenizer, ModelConfig(chat_template="plain"))
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    rows = []
    for prompt, answer, end in ((ASKED, HOSTILE, None), (ENDLESS, "on" + " on" * 30, -3)):
        turns = [Message(role="user", content=prompt), Message(role="assistant", content=answer)]
        [row] = encode_demonstration(tokenizer, turns)
        ids, labels = row.input_ids, row.labels
        rows.append({"input_ids": torch.tensor([ids[:end]]), "labels": torch.tensor([labels[:end]])})
    forever = rows[-1]["input_ids"][:, -64:]  # what it reads when the prompt is long ago
    rows.append({"input_ids": forever, "labels": forever})
    for _ in range(300):
        losses = [model(**row).loss for row in rows]
        sum(losses).backward()
        optimiser.step()
        optimiser.zero_grad()
        if max(losses) < 0.003:
            break
    model.config.max_position_embeddings = 4096
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory, bases: Any, policies_run: Any) -> Path:
    folder = tmp_path_factory.mktemp("open")
    shutil.copytree(bases("plain"), folder / "base")
    learn_by_heart(folder / "base")
    made = policies_run(folder / "run", folder / "base", size=0.02)
    (made / "compare").mkdir()
    decoding = {"max_new_tokens": 24, "temperature": 0.7, "top_k": 30, "top_p": 1.0, "seed": 7}
    (made / "compare" / "report.json").write_text(json.dumps(comparison_of(decoding=decoding)))
    one = [{"role": "user", "content": f"Held-out question {{}}, {HOSTILE}"}]
    several = [
        {"role": "user", "content": "Which colour?"},
        {"role": "assistant", "content": "Teal."},
        {"role": "user", "content": "And why teal?"},
    ]
    rows = [
        {"prompt_id": f"p{i}", "category": "advice", "prompt": [{**one[0], "content": one[0]["content"].format(i)}]}
        for i in range(60)
    ]
    write_rows(made / "compare" / "samples.jsonl", [*rows, {"prompt_id": "teal", "prompt": several}])
    return made


@pytest.fixture(scope="module")
def app(run_dir: Path) -> Iterator[Any]:
    """Serves the run; its process ends with it."""
    made = run_app(run_dir)
    bound = listen("127.0.0.1", 0)
    running = server(made)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    made.state.url = f"http://127.0.0.1:{bound.getsockname()[1]}"
    while not running.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield made
    running.should_exit = True
    process = made.state.worker._process
    made.state.worker.close()
    thread.join(10)
    assert process is None or not process.is_alive()


class Asking:
    """Somebody who asks the API."""

    def __init__(self, app: Any, session: str | None):
        cookies = {COOKIE: session} if session else {}
        self.http = httpx.Client(base_url=app.state.url, cookies=cookies, timeout=60)

    def start(self, **values: Any) -> str:
        answer = self.http.post("/api/v1/open/jobs", json=values)
        assert answer.status_code == 200, answer.text
        return answer.json()["job"]

    def follow(self, job: str, after: int = 0, **options: Any) -> Generator[tuple[int, dict[str, Any]], None, None]:
        """Events with their numbers, as they come."""
        headers = {"Last-Event-ID": str(after)} if after else {}
        with self.http.stream("GET", f"/api/v1/open/jobs/{job}/events", headers=headers, **options) as answer:
            assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
            number = 0
            for line in answer.iter_lines():
                key, _, value = line.partition(": ")
                if key == "id":
                    number = int(value)
                elif key == "data":
                    yield number, json.loads(value)

    def events(self, job: str, kind: str | None = None) -> list[dict[str, Any]]:
        return [event for _, event in self.follow(job) if kind in (None, event["type"])]

    def stop(self, job: str) -> None:
        assert self.http.post(f"/api/v1/open/jobs/{job}/stop").status_code == 200


@pytest.fixture
def admin(app: Any) -> Iterator[Asking]:
    made = Asking(app, app.state.people.open_session(None))
    yield made
    made.http.close()


def texts(events: list[dict[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for event in events:
        for policy, text in event["texts"].items() if event["type"] == "step" else ():
            found[policy] = found.get(policy, "") + text
    return found


# ---- What is said -----------------------------------------------------------------------------------------------


def test_nothing_is_started_before_somebody_asks(app: Any, admin: Asking) -> None:
    """Runs first: the pages are there without the process."""
    assert admin.http.get("/open/").status_code == 200 and app.state.worker.pid is None
    said = admin.http.get("/api/v1/open/policies").json()
    assert [one["title"] for one in said["policies"]] == ["Base", "SFT", "Step 2", "Step 10", "Aligned (DPO)"]
    decoding = {"max_new_tokens": 24, "temperature": 0.7, "top_k": 30, "top_p": 1.0, "seed": 7}
    assert said["decoding"] == decoding | {"max_thinking_tokens": 0}
    assert said["context"] == 4096
    assert app.state.worker.pid is None


def test_the_web_process_needs_no_torch(run_dir: Path) -> None:
    code = (
        "import sys, pathlib; from ui.app import run_app; from fastapi.testclient import TestClient\n"
        "app = run_app(pathlib.Path(sys.argv[1])); from ui.people.accounts import COOKIE\n"
        "asking = TestClient(app, base_url='http://127.0.0.1')\n"
        "asking.cookies.set(COOKIE, app.state.people.open_session(None))\n"
        "body = dict(prompt='x ' * 9000, policies=['sft'])\n"
        "print(asking.post('/api/v1/open/jobs', json=body).status_code, 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(run_dir)], capture_output=True, text=True, timeout=120)
    assert answer.stdout.strip() == "422 False", answer.stderr


def test_answers_stream_in_lockstep_and_are_scored_and_compared(admin: Asking, run_dir: Path) -> None:
    from trueup.models.lockstep import Engine
    from trueup.models.sampling import Decoding

    numbered = list(admin.follow(admin.start(**SHORT)))
    events = [event for _, event in numbered]
    assert [number for number, _ in numbered] == list(range(1, len(events) + 1))
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["accepted", "queued"] and kinds[-1] == "done" and "loading" in kinds
    assert kinds.index("step") < kinds.index("answer") < kinds.index("score") < kinds.index("ratios")
    assert events[0]["work"]["prompt"] == [{"role": "user", "content": SHORT["prompt"]}]

    engine, prompt = Engine(run_dir), [Message(role="user", content=SHORT["prompt"])]
    expected: dict[str, Any] = {}
    for step in engine.stream(["sft", "aligned"], prompt, Decoding(12, temperature=0.9, seed=5)):
        expected |= step.ended
    assert {policy: text.strip() for policy, text in texts(events).items()} == {
        policy: answer.text for policy, answer in expected.items()
    }
    ended = {event["policy"]: event for event in events if event["type"] == "answer"}
    assert {p: e["tokens"] for p, e in ended.items()} == {p: len(a.token_ids) for p, a in expected.items()}
    scores = {event["policy"]: event["score"] for event in events if event["type"] == "score"}
    assert list(scores.values()) == pytest.approx(
        engine.scores(prompt, [expected[policy] for policy in scores]), abs=1e-4
    )
    [ratios] = [event for event in events if event["type"] == "ratios"]
    exact = engine.log_ratios(prompt, expected["aligned"].token_ids, "aligned")
    assert ratios["policy"] == "aligned" and ratios["sum"] == pytest.approx(exact.sum().item(), abs=1e-4)
    assert sum(piece["nats"] for piece in ratios["pieces"]) == pytest.approx(ratios["sum"], abs=1e-4)
    assert "".join(piece["text"] for piece in ratios["pieces"]) == texts(events)["aligned"]


def test_what_was_missed_comes_after_the_last_event_that_was_seen(admin: Asking) -> None:
    job = admin.start(**SHORT)
    first = admin.follow(job)
    seen = [next(first) for _ in range(4)]
    first.close()
    rest = list(admin.follow(job, after=seen[-1][0]))
    assert [number for number, _ in seen + rest] == list(range(1, len(seen + rest) + 1))
    assert [*seen, *rest] == list(admin.follow(job)), "and a page that is loaded again gets all of it"
    again = admin.http.get(f"/api/v1/open/jobs/{job}/events", params={"after": len(seen + rest) - 1})
    assert again.text.count("data: ") == 1 and '"done"' in again.text


def test_a_run_can_be_stopped_and_says_how_far_it_came(admin: Asking) -> None:
    job, steps, events = admin.start(**LONG), 0, []
    for _, event in admin.follow(job):
        steps += event["type"] == "step"
        if steps == 3 and event["type"] == "step":
            admin.stop(job)
        events.append(event)
    ended = [event for event in events if event["type"] == "answer"]
    assert [event["ended"] for event in ended] == ["stopped", "stopped"] and 3 <= ended[0]["tokens"] < 3000
    assert events[-1] == {"type": "stopped"} and "score" not in [event["type"] for event in events]
    [ratios] = [event for event in events if event["type"] == "ratios"]
    assert sum(piece["tokens"] for piece in ratios["pieces"]) == ended[0]["tokens"] == steps
    admin.stop(job)
    assert admin.events(job)[-1] == {"type": "stopped"}


def test_two_people_at_once_wait_for_each_other_and_the_queue_is_bounded(app: Any, admin: Asking) -> None:
    other = Asking(app, app.state.people.open_session(None))
    running = admin.start(**LONG)
    waiting = [other.start(**SHORT) for _ in range(WAITING)]
    refused = other.http.post("/api/v1/open/jobs", json=SHORT)
    assert refused.status_code == 429 and refused.json()["detail"] == "8 requests wait already: try again later"
    stream = other.follow(waiting[1])
    assert [next(stream)[1]["type"] for _ in range(2)] == ["accepted", "queued"]
    other.stop(waiting[0])
    assert other.events(waiting[0])[-1] == {"type": "stopped"}
    assert next(stream)[1] == {"type": "queued", "ahead": 1}, "it moved up"
    for job in waiting[2:]:
        other.stop(job)
    admin.stop(running)
    assert [event["type"] for _, event in stream][-1] == "done"
    assert admin.events(running)[-1] == {"type": "stopped"}
    other.http.close()


def test_many_open_streams_hold_up_nobody_else(admin: Asking, app: Any) -> None:
    """More of them than the server has threads."""
    job = admin.start(**LONG)
    streams = [admin.follow(job) for _ in range(45)]
    with httpx.Client(
        base_url=app.state.url, cookies=admin.http.cookies, limits=httpx.Limits(max_connections=200)
    ) as http:
        admin.http, kept = http, admin.http
        for stream in streams:
            next(stream)
        assert http.get("/api/v1/open/policies").status_code == 200 == http.get("/").status_code
        admin.stop(job)
        assert {list(stream)[-1][1]["type"] for stream in streams} == {"stopped"}
        admin.http = kept


def test_whatever_ends_the_process_is_said_and_the_next_request_starts_it_again(app: Any, admin: Asking) -> None:
    job = admin.start(**LONG)
    stream = admin.follow(job)
    while next(stream)[1]["type"] != "step":
        pass
    os.kill(before := app.state.worker.pid, signal.SIGKILL)
    last = list(stream)[-1][1]
    assert last["type"] == "failed" and "was killed by signal 9; most likely memory ran out" in last["message"]
    events = admin.events(admin.start(**SHORT))
    assert events[-1]["type"] == "done" and {"type": "loading", "what": "the model process"} in events
    assert app.state.worker.pid != before


def test_a_stage_that_was_run_again_is_loaded_again(app: Any, admin: Asking, run_dir: Path) -> None:
    before, manifest = app.state.worker.pid, run_dir / "align" / "manifest.json"
    said = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(said), "duration_s": 1.5}))
    assert admin.events(admin.start(**SHORT))[-1]["type"] == "done" and app.state.worker.pid != before


# ---- What is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"prompt": "  \n"}, "prompt: is empty; write what a person would say"),
        ({"prompt": None}, "give one of prompt, prompt_id and conversation (found none)"),
        ({"prompt_id": "p1"}, "give one of prompt, prompt_id and conversation (found prompt, prompt_id)"),
        ({"prompt": None, "prompt_id": "x"}, "prompt_id: 'x' is not one of this run's held-out prompts"),
        (
            {"prompt": None, "conversation": [{"role": "assistant", "content": "Hello"}]},
            "conversation: turns must alternate user, assistant and end with user; found assistant",
        ),
        ({"prompt": None, "conversation": []}, "conversation: turns must alternate user, assistant"),
        (
            {"policies": ["sft", "ppo"]},
            "policies: 'ppo' is not of this run; known are base, sft, step-2, step-10, aligned",
        ),
        ({"policies": []}, "policies: choose 1 to 8 different ones (found 0)"),
        ({"policies": ["sft", "sft"]}, "policies: choose 1 to 8 different ones (found 2)"),
        ({"temperature": -0.1}, "temperature: Input should be greater than or equal to 0"),
        ({"temperature": "NaN"}, "temperature: Input should be a finite number"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: Input should be greater than or equal to 1"),
        ({"seeds": 1}, "seeds: Extra inputs are not permitted"),
        (
            {"max_new_tokens": 4090},
            "tokens and max_new_tokens is 4090, more than this model's context of 4096: shorten",
        ),
        (
            {"prompt": "Say red. " * 3000},
            "more than this model's context of 4096: shorten the prompt, or ask for fewer",
        ),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_answered_is_refused_with_what_is_wrong(admin: Asking, changed: Any, problem: str) -> None:
    body = {key: value for key, value in {**SHORT, **changed}.items() if value is not None}
    answer = admin.http.post("/api/v1/open/jobs", json=body)
    assert answer.status_code == 422 and problem in answer.json()["detail"]


def test_what_only_the_model_can_refuse_is_said_where_the_answer_would_be(admin: Asking) -> None:
    """The chat template's own tokens are counted there."""
    [failed] = admin.events(admin.start(**{**SHORT, "prompt": "a", "max_new_tokens": 4090}), "failed")
    assert "with 4090 new ones that is more than this model's context of 4096" in failed["message"]
    assert admin.events(admin.start(**{**SHORT, "prompt": "a <|endoftext|> b"}))[-1]["type"] == "done"


def test_a_request_that_is_not_known_is_404(admin: Asking) -> None:
    for method, path in (("GET", "events"), ("POST", "stop")):
        answer = admin.http.request(method, f"/api/v1/open/jobs/nothing/{path}")
        assert answer.status_code == 404 and "this server knows no such request" in answer.json()["detail"]


def test_it_is_for_admins_alone(app: Any, admin: Asking, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ui.people.passwords._LOG2_N", 4)
    job, people = admin.start(**SHORT), app.state.people
    people.add("Root", "admin", "four words are enough")
    people.add("Ann", "annotator", "four words are enough")
    accounts = {row.name: row.account_id for row in people.accounts()}
    ann, root = (Asking(app, people.open_session(accounts[name])) for name in ("Ann", "Root"))
    asked = [
        ("GET", "/open/", None),
        ("GET", "/open/theme.css", None),
        ("GET", "/api/v1/open/policies", None),
        ("GET", "/api/v1/open/prompts", None),
        ("POST", "/api/v1/open/jobs", SHORT),
        ("GET", f"/api/v1/open/jobs/{job}/events", None),
        ("POST", f"/api/v1/open/jobs/{job}/stop", None),
    ]
    for who, status in ((ann, 403), (Asking(app, None), 401), (root, 200)):
        found = {path: who.http.request(method, path, json=body).status_code for method, path, body in asked}
        assert set(found.values()) == {status}, found
    stranger = root.http.post("/api/v1/open/jobs", json=SHORT, headers={"Origin": "https://evil.example"})
    assert stranger.status_code == 403
    assert "/open/" in root.http.get("/").text and "/open/" not in ann.http.get("/").text
    for name in ("Root", "Ann"):
        people.disable(name)


def test_without_an_sft_policy_there_is_no_open_mode(compared: Any, tmp_path: Path) -> None:
    (tmp_path / "run" / "sft" / "manifest.json").unlink()
    app = run_app(compared.dir)
    assert app.state.worker is None and "/api/v1/open/jobs" not in app.openapi()["paths"]


# ---- Held-out prompts -------------------------------------------------------------------------------------------


def test_prompts_are_found_by_every_word_in_any_turn(admin: Asking) -> None:
    def found(**params: Any) -> Any:
        return admin.http.get("/api/v1/open/prompts", params=params).json()

    assert (found()["total"], len(found()["prompts"])) == (61, 50)
    [teal] = found(search="COLOUR why")["prompts"]
    assert teal["prompt_id"] == "teal" and [turn["role"] for turn in teal["messages"]] == ["user", "assistant", "user"]
    assert found(search="colour 7") == {"total": 0, "prompts": []}
    [accepted] = admin.events(admin.start(**{**SHORT, "prompt": None, "prompt_id": "teal"}), "accepted")
    assert accepted["work"]["prompt"] == teal["messages"]


def test_before_there_is_a_comparison_the_held_out_candidates_are_offered(run_dir: Path, tmp_path: Path) -> None:
    from ui.pages.open_api import _decoding, _heldout

    rows = [
        {"prompt_id": split, "prompt": [{"role": "user", "content": split}], "split": split}
        for split in ("train", "heldout")
    ]
    assert _heldout(tmp_path) == []
    (tmp_path / "candidates").mkdir()
    write_rows(tmp_path / "candidates" / "candidates.jsonl", rows)
    assert [one.prompt_id for one in _heldout(tmp_path)] == ["heldout"]
    assert _decoding(tmp_path).temperature == 1.0


# ---- Pieces -----------------------------------------------------------------------------------------------------


def test_tokens_that_are_bytes_of_one_character_are_one_piece() -> None:
    found = pieces(["Hi", "", "", "🙂", ""], [0.5, 0.25, -1.0, 0.5, 2.0], finished=True)
    assert [(one.text, one.nats, one.tokens, one.end) for one in found] == [
        ("Hi", 0.5, 1, False),
        ("🙂", -0.25, 3, False),
        ("", 2.0, 1, True),
    ]
    [cut] = pieces(["", ""], [1.0, 1.0], finished=False)
    assert (cut.text, cut.nats, cut.tokens, cut.end) == ("", 2.0, 2, False)


def test_nothing_follows_what_was_said_last() -> None:
    work = Work(prompt=[], policies=[], temperature=1, top_k=0, top_p=1, seed=0, max_new_tokens=1)
    job = Job(work)
    job.add(Stopped())
    job.add(Stepped(texts={}, seconds=0))
    assert [event.type for event in job.events] == ["accepted", "stopped"] and job.ended


# ---- The page ---------------------------------------------------------------------------------------------------


class Page:
    """The open mode in a browser."""

    def __init__(self, context: Any, app: Any):
        self.app, self.url = app, app.state.url
        context.add_cookies([{"name": COOKIE, "value": app.state.people.open_session(None), "url": self.url}])
        self.problems: list[str] = []
        self.page = context.new_page()
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.goto(f"{self.url}/open/")
        self.until("ready")

    def until(self, state: str) -> None:
        self.page.wait_for_selector(f".tu-open[data-state={state}]", timeout=60_000)

    def ask(
        self, prompt: str = "What is blue?", policies: tuple[str, ...] = ("sft", "aligned"), **numbers: Any
    ) -> None:
        self.page.fill("#open-prompt", prompt)
        for box in self.page.locator(".tu-checks input").all():
            box.set_checked(box.get_attribute("value") in policies)
        for name, value in numbers.items():
            self.page.fill(f"input[name={name}]", str(value))
        self.press()

    def press(self) -> None:
        self.before = self.job
        self.page.keyboard.press("Control+Enter")

    def done(self) -> None:
        """Until what was asked last is over."""
        self.page.wait_for_function(
            "(before) => location.hash !== before && document.querySelector('.tu-open').dataset.state === 'ready'",
            arg=f"#job={self.before}" if self.before else "",
            timeout=60_000,
        )

    def column(self, policy: str) -> Any:
        return self.page.locator(f".tu-column[data-policy={policy}]")

    def text(self, policy: str) -> str:
        return str(self.column(policy).locator(".tu-stream").text_content())

    def grown(self, policy: str, than: int = 0) -> None:
        self.page.wait_for_function(
            "([column, than]) => document.querySelector(`${column} .tu-stream`)?.textContent.length > than",
            arg=[f"[data-policy={policy}]", than],
            timeout=60_000,
        )

    @property
    def status(self) -> str:
        return str(self.page.locator(".tu-status").inner_text())

    @property
    def job(self) -> str:
        return str(self.page.evaluate("location.hash")).removeprefix("#job=")


@pytest.fixture
def page(context: Any, app: Any) -> Page:
    return Page(context, app)


LENGTHY: dict[str, Any] = {"prompt": ENDLESS, "policies": ("sft", "aligned"), "temperature": 0, "max_new_tokens": 3000}


@pytest.mark.browser
def test_answers_stand_side_by_side_and_every_token_has_its_number(page: Page, admin: Asking) -> None:
    shown = page.page
    assert [box.get_attribute("value") for box in shown.locator(".tu-checks :checked").all()] == ["sft", "aligned"]
    assert shown.input_value("input[name=temperature]") == "0.7" and shown.input_value("input[name=top_k]") == "30"
    page.ask(temperature=0.9, top_k=0, seed=5, max_new_tokens=12)
    page.until("ready")
    events = admin.events(page.job)
    assert page.status == "Done" and events[0]["work"]["seed"] == 5
    boxes = [page.column(policy).bounding_box() for policy in ("sft", "aligned")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["width"] == boxes[1]["width"]
    said = texts(events)
    assert page.text("sft") == said["sft"].lstrip()
    for policy in ("sft", "aligned"):
        [answer] = [e for e in events if e["type"] == "answer" and e["policy"] == policy]
        [score] = [e["score"] for e in events if e["type"] == "score" and e["policy"] == policy]
        facts = page.column(policy).locator(".tu-facts").inner_text()
        assert f"{answer['tokens']} tokens" in facts and "tokens/s" in facts
        assert f"{abs(score):.2f} by the reward model" in facts
        ended = {"eos": "ended by itself", "limit": "cut at the limit"}[answer["ended"]]
        assert page.column(policy).locator(".tu-ended").inner_text() == ended

    [ratios] = [event for event in events if event["type"] == "ratios"]
    spans = page.column("aligned").locator(".tu-piece")
    assert spans.count() == len(ratios["pieces"]) and page.column("sft").locator(".tu-piece").count() == 0
    ways = [span.get_attribute("data-way") for span in spans.all()]
    assert ways == ["less" if piece["nats"] < 0 else "more" for piece in ratios["pieces"]]
    moved = sorted((abs(piece["nats"]) for piece in ratios["pieces"]), reverse=True)[:5]
    listed = page.column("aligned").locator(".tu-moved li").all_inner_texts()
    assert [text.split()[-1].lstrip("+−") for text in listed] == [f"{nats:.2f}" for nats in moved]
    assert f"{abs(ratios['sum']):.2f} nats" in page.column("aligned").locator(".tu-moved p").first.inner_text()

    number = f"{abs(ratios['pieces'][2]['nats']):.2f} nats"
    spans.nth(2).hover()
    assert number in shown.locator(".tu-tip").inner_text()
    shown.mouse.move(0, 0)
    assert shown.locator(".tu-tip").is_hidden()
    shown.locator("[data-do=colours]").focus()
    shown.keyboard.press("Tab")  # the answer is the next thing to reach
    for key in ("ArrowRight", "ArrowRight"):
        shown.keyboard.press(key)
    assert number in shown.locator(".tu-tip").inner_text() and "at" in spans.nth(2).get_attribute("class").split()
    assert number in page.column("aligned").locator("[role=status]").text_content()
    shown.keyboard.press("Escape")
    assert shown.locator(".tu-tip").is_hidden()
    colour = "(span) => getComputedStyle(span).backgroundColor"
    assert spans.nth(2).evaluate(colour) != "rgba(0, 0, 0, 0)"
    shown.locator("[data-do=colours]").uncheck()
    assert spans.nth(2).evaluate(colour) == "rgba(0, 0, 0, 0)" and page.problems == []


@pytest.mark.browser
def test_a_run_is_stopped_by_its_button_and_another_can_be_started(page: Page) -> None:
    page.ask(**LENGTHY)
    page.grown("sft")
    assert page.page.locator("[data-do=run]").is_disabled()
    page.page.keyboard.press("Control+Enter")  # does nothing now
    page.page.get_by_role("button", name="Stop").click()
    page.until("ready")
    assert page.status == "Stopped" and page.column("sft").locator(".tu-ended").inner_text() == "stopped"
    assert page.column("aligned").locator(".tu-piece").count() > 0
    page.ask(temperature=0.9, max_new_tokens=4)
    page.done()
    assert page.status == "Done" and page.problems == []


@pytest.mark.browser
def test_a_page_that_is_loaded_again_goes_on_with_the_run(page: Page, admin: Asking) -> None:
    page.ask(**LENGTHY)
    page.grown("sft", 200)
    job = page.job
    page.page.reload()
    page.grown("sft", 400)
    assert page.job == job and page.page.input_value("#open-prompt") == ENDLESS
    assert page.page.input_value("input[name=max_new_tokens]") == "3000"
    page.page.get_by_role("button", name="Stop").click()
    page.until("ready")
    assert page.text("sft") == texts(admin.events(job))["sft"].lstrip() and page.status == "Stopped"
    page.page.reload()
    page.page.wait_for_selector(".tu-moved:visible")
    assert page.status == "Stopped" and page.problems == []


@pytest.mark.browser
def test_a_connection_that_was_lost_misses_nothing_and_repeats_nothing(page: Page, admin: Asking) -> None:

    def cut(route: Any) -> None:
        """The first connection ends after five events, and the page says so for three seconds."""
        stream = admin.follow(route.request.url.split("/")[-2])
        first = [next(stream) for _ in range(5)]
        body = "".join(f"id: {number}\ndata: {json.dumps(event)}\n\n" for number, event in first)
        route.fulfill(content_type="text/event-stream", body=f"retry: 3000\n\n{body}")

    page.page.add_init_script(
        """window.arrived = [];
        window.EventSource = class extends EventSource {
          constructor(url) {
            super(url);
            this.addEventListener("message", (event) => arrived.push(Number(event.lastEventId)));
          }
        };"""
    )
    page.page.reload()
    page.until("ready")
    intercept(page.page, "**/events", cut, times=1)
    page.ask(max_new_tokens=12)
    page.page.get_by_text("The connection was lost. Trying again…").wait_for()
    page.done()
    events = admin.events(page.job)
    assert page.page.evaluate("arrived") == list(range(1, len(events) + 1))
    assert page.text("sft") == texts(events)["sft"].lstrip() and page.status == "Done"


@pytest.mark.browser
def test_who_asks_second_is_told_how_many_are_first(page: Page, context: Any, app: Any, admin: Asking) -> None:
    page.ask(**LENGTHY)
    page.grown("sft")
    other = Page(context, app)
    other.ask(temperature=0.9, max_new_tokens=4)
    other.page.get_by_text("Waiting: 1 before this one").wait_for()
    admin.stop(page.job)
    other.until("ready")
    assert other.status == "Done" and other.job != page.job


@pytest.mark.browser
def test_a_held_out_prompt_is_found_and_picked_by_keys_with_its_earlier_turns(page: Page, admin: Asking) -> None:
    shown = page.page
    shown.get_by_role("button", name="Pick a held-out prompt").click()
    shown.get_by_text("50 of 61 prompts").wait_for()
    shown.keyboard.type("why teal")
    shown.get_by_text("1 prompt", exact=True).wait_for()
    shown.keyboard.press("ArrowDown")
    shown.keyboard.press("Enter")
    assert shown.input_value("#open-prompt") == "And why teal?"
    assert shown.locator(".tu-context li").all_inner_texts() == ["Person\nWhich colour?", "Assistant\nTeal."]

    def sent() -> Any:
        with shown.expect_request("**/api/v1/open/jobs") as asked:
            page.press()
        page.done()
        body = asked.value.post_data_json
        return {key: body[key] for key in ("prompt", "prompt_id", "conversation") if key in body}

    shown.fill("input[name=max_new_tokens]", "3")
    assert sent() == {"prompt_id": "teal"}
    shown.fill("#open-prompt", "And why not plum?")
    assert [turn["content"] for turn in sent()["conversation"]] == ["Which colour?", "Teal.", "And why not plum?"]
    shown.get_by_role("button", name="Leave out the earlier turns").click()
    assert sent() == {"prompt": "And why not plum?"}


@pytest.mark.browser
def test_what_a_model_or_a_prompt_says_is_shown_and_never_run_or_fetched(page: Page, context: Any) -> None:
    outside: list[str] = []
    page.page.on("request", lambda asked: None if asked.url.startswith(page.url) else outside.append(asked.url))
    shown = page.page
    shown.click("[data-do=pick]")
    shown.get_by_text("50 of 61 prompts").wait_for()
    assert "<script>hacked=2</script>" in shown.locator(".tu-picker li").first.inner_text()
    shown.keyboard.press("Escape")
    page.ask(ASKED, policies=("base", "sft"), temperature=0, max_new_tokens=120)
    page.until("ready")
    assert page.text("base") == HOSTILE + "end", "the model did say it"
    page.ask(HOSTILE, policies=("base", "aligned"), temperature=0, max_new_tokens=8)
    page.done()
    shown.reload()
    shown.wait_for_selector(".tu-moved:visible")
    assert shown.input_value("#open-prompt") == HOSTILE
    assert shown.evaluate("window.hacked") is None and outside == [] and page.problems == []
    assert shown.locator(".tu-columns img, .tu-columns script, .tu-columns a, .tu-context script").count() == 0


@pytest.mark.browser
def test_what_is_wrong_is_said_on_the_page(page: Page) -> None:
    alert = page.page.get_by_role("alert")
    page.ask(prompt="")
    page.page.get_by_text("Not started: prompt: is empty; write what a person would say.").wait_for()
    page.ask(policies=())
    page.page.get_by_text("Not started: policies: choose 1 to 8 different ones (found 0).").wait_for()
    page.ask(prompt="a", max_new_tokens=4090)
    page.page.get_by_text("with 4090 new ones that is more than this model's context of 4096").wait_for()
    assert page.status == "Failed"
    page.ask(temperature=0, max_new_tokens=3)
    assert page.page.get_by_text("Temperature 0 is greedy").is_visible()
    page.page.wait_for_selector(".tu-moved:visible")
    assert alert.is_hidden()
    page.page.goto("about:blank")
    page.page.goto(f"{page.url}/open/#job=0123")
    page.page.get_by_text("The server no longer has this prompt and its answers").wait_for()


def serious(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response["violations"]
    return [f"{v['id']}: {v['nodes'][0]['html'][:160]}" for v in found if v["impact"] in ("serious", "critical")]


@pytest.mark.browser
@pytest.mark.parametrize(("width", "scheme"), [(320, "dark"), (1280, "light")])
def test_every_state_of_the_page_is_accessible_and_fits(chromium: Any, app: Any, width: int, scheme: str) -> None:
    inside = chromium.new_context(
        viewport={"width": width, "height": 720}, color_scheme=scheme, reduced_motion="reduce"
    )
    page = Page(inside, app)
    shown = page.page

    def right() -> None:
        assert serious(shown) == []
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for control in shown.locator(".tu-open button:visible, .tu-open input:not([type=checkbox]):visible").all():
            assert control.bounding_box()["height"] >= 44, control.inner_text()

    right()
    page.ask(**LENGTHY)
    page.grown("sft", 100)
    right()
    page.page.get_by_role("button", name="Stop").click()
    page.until("ready")
    page.ask(policies=("base", "sft", "step-2", "step-10", "aligned"), temperature=0.9, max_new_tokens=20)
    page.done()
    shown.locator("[data-do=scale]").select_option("0.5")
    right()
    page.column("aligned").locator(".tu-piece").first.hover()
    right()
    tip = shown.locator(".tu-tip").bounding_box()
    assert tip["x"] >= 0 and tip["x"] + tip["width"] <= width
    shown.click("[data-do=pick]")
    shown.get_by_text("50 of 61 prompts").wait_for()
    right()
    shown.keyboard.press("Escape")
    light = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 245, 242)"
    assert light == (scheme == "light") and page.problems == []
    page.ask(prompt="")
    shown.get_by_role("alert").wait_for()
    right()
    inside.close()
