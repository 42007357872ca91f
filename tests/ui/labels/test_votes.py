"""Blind votes on a comparison: through the label service, final after their reveal, apart from training labels."""

from __future__ import annotations

import json
import shutil
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient
from manifests import comparison_of
from pydantic import TypeAdapter

from trueup import runs
from trueup.cli import main
from trueup.data.records import Prompt, read_jsonl, write_rows
from trueup.data.split import is_heldout
from trueup.errors import DataError, RunError
from trueup.judging.votes import Vote, read_votes, votes_digest
from trueup.stages import round_dir
from trueup.verify import verify
from ui.app import label_app, run_app
from ui.blindcheck.run import Report
from ui.blindcheck.secrets import Recorder, Secret, secrets_of
from ui.label.run import run as run_label_stage
from ui.labels.tables import event, slot, view
from ui.labels.tasks import BadJudgement, IdealCompletion, Judgement, Recorded, StaleToken, Task
from ui.labels.votes import Votes, promote, running_win_rate
from ui.pages.label_api import Opening, RenderedTask
from ui.people.accounts import COOKIE

URL = "http://127.0.0.1:7860"
API = "/api/v1/votes"
PASSWORD = "four words are enough"


def compare(run_dir: Path, prompts: int = 6, per_prompt: int = 2, **texts: Callable[[int, int], str]) -> None:
    """A finished comparison, in which every text says whose it is (to this test)."""
    folder = runs.stage_dir(run_dir, "compare")
    folder.mkdir(parents=True, exist_ok=True)
    of = {"sft": lambda i, k: f"Old {i}.{k}.", "aligned": lambda i, k: f"New {i}.{k}, because."} | texts
    rows = [
        {
            "prompt_id": f"is computed from the prompt {i}",
            "prompt": [{"role": "user", "content": f"Compared question {i}?"}],
            "category": "advice",
            **{
                side: [
                    {"text": text(i, k), "finished": False, "num_tokens": 987654, "scores": {"reward_model": 0.8765432}}
                    for k in range(per_prompt)
                ]
                for side, text in of.items()
            },
        }
        for i in range(prompts)
    ]
    write_rows(folder / "samples.jsonl", rows)
    (folder / "report.json").write_text(json.dumps(comparison_of()), encoding="utf-8")


@pytest.fixture
def votes(campaign: Any) -> Iterator[Votes]:
    """Six prompts to vote on, two answers of each policy."""
    compare(campaign.dir)
    made = Votes(campaign.dir, campaign.label())
    yield made
    made.close()


def vote(votes: Votes, person: str, choice: str = "a", **values: Any) -> Recorded[Task]:
    service = votes.service()
    token = service.tasks(person)[0].token
    return service.label(person, Judgement(f"{person}-{token}", token, choice, **values))


def prefer(votes: Votes, person: str, policy: str) -> Recorded[Task]:
    """Votes for what only this test can tell to be that policy's answer."""
    texts = votes.service().tasks(person)[0].texts
    return vote(votes, person, "ab"[[text.startswith("New") for text in texts].index(policy == "aligned")])


# ---- What is voted on -------------------------------------------------------------------------------------------


def test_each_prompt_gives_one_pair_of_answers_that_share_no_random_numbers_and_always_the_same(
    votes: Votes, campaign: Any
) -> None:
    def pairs(of: Votes) -> list[tuple[str, int, int]]:
        service, found = of.service(), []
        with service.store.read() as db:
            for row in db.execute(sa.text("SELECT prompt_id, sampler, completions FROM item ORDER BY item_id")):
                (sft, aligned), texts = json.loads(row.sampler)["answers"], json.loads(row.completions)
                assert (sft["policy"], aligned["policy"]) == ("sft", "aligned")
                assert texts[0]["text"].endswith(f".{sft['index']}.")
                assert texts[1]["text"].endswith(f".{aligned['index']}, because.")
                assert aligned["manifest_sha256"] == "aligned-5e1f00d5"
                found.append((row.prompt_id, sft["index"], aligned["index"]))
        return found

    first = pairs(votes)
    assert len({name for name, _, _ in first}) == 6 and {(i, j) for _, i, j in first} == {(0, 1), (1, 0)}
    other = Votes(campaign.dir / "elsewhere")
    compare(campaign.dir / "elsewhere")
    assert pairs(other) == first
    other.close()


def test_one_answer_of_each_is_compared_though_they_share_their_random_numbers(campaign: Any) -> None:
    compare(campaign.dir, prompts=2, per_prompt=1)
    votes = Votes(campaign.dir)
    assert [sorted(task.texts) for task in votes.service().tasks("ann")] == [
        [f"New {i}.0, because.", f"Old {i}.0."] for i in (1, 0)
    ] or len(votes.service().tasks("ann")) == 2
    votes.close()


def test_nobody_is_asked_about_answers_that_read_the_same_and_they_are_counted(campaign: Any) -> None:
    compare(campaign.dir, 5, aligned=lambda i, k: f"Old {i}.{1 - k}.<|im_end|>" if i < 2 else f"New {i}.{k}")
    votes = Votes(campaign.dir)
    votes.service()
    assert (votes.identical, votes.figures().pairs) == (2, 3)
    votes.close()


def test_a_run_is_left_as_it_is_until_somebody_votes(campaign: Any) -> None:
    votes = Votes(campaign.dir)
    assert not votes.exist
    with pytest.raises(RunError, match=r"compare/samples\.jsonl: not there; `trueup compare CONFIG`"):
        votes.service()
    compare(campaign.dir)
    assert votes.exist and not votes.path.exists()
    assert votes.service().tasks("ann") and votes.path.is_file()
    votes.close()


def test_a_row_that_lacks_a_policy_is_named(campaign: Any) -> None:
    compare(campaign.dir)
    samples = campaign.dir / "compare/samples.jsonl"
    rows = [values for _, values in read_jsonl(samples)]
    del rows[2]["aligned"]
    write_rows(samples, rows)
    votes = Votes(campaign.dir)
    with pytest.raises(DataError, match=r"samples\.jsonl:3: aligned: Field required"):
        votes.service()
    votes.close()


def test_people_vote_by_the_guideline_and_the_scale_that_they_labelled_by(campaign: Any) -> None:
    compare(campaign.dir)
    votes = Votes(campaign.dir, campaign.label(guideline="Be kind.", scale="plain"))
    assert (votes.settings.guideline, votes.settings.scale) == ("Be kind.", "plain")
    with pytest.raises(BadJudgement, match="expected one of a, tie, b"):
        vote(votes, "ann", "a_much")
    votes.close()


# ---- Votes ------------------------------------------------------------------------------------------------------


def test_the_reveal_says_whose_answer_stood_where_and_the_vote_is_for_that_policy(votes: Votes) -> None:
    for number in range(6):
        texts = votes.service().tasks("ann")[0].texts
        done = vote(votes, "ann", ["a", "b_much", "tie", "both_bad", "a_slightly", "b"][number])
        assert done.reveal is not None
        assert [done.reveal.a, done.reveal.b] == ["aligned" if text.startswith("New") else "sft" for text in texts]
        said = read_votes(votes.path)[-1]
        preferred = vars(done.reveal).get((done.label.choice or "")[0])
        expected = {"aligned": 1.0, "sft": 0.0, None: 0.5}[None if number in (2, 3) else preferred]
        assert said.outcome == expected and said.voter == "ann"
    assert len(read_votes(votes.path)) == 6


def test_a_vote_that_is_sent_again_gets_the_same_reveal_and_counts_once(votes: Votes) -> None:
    first = vote(votes, "ann", "b")
    again = votes.service().label("ann", Judgement(first.label.client_uuid, "whatever", "a"))
    assert again == first and again.reveal is not None
    assert len(read_votes(votes.path)) == 1


def test_a_vote_is_final(votes: Votes) -> None:
    vote(votes, "ann")
    with pytest.raises(BadJudgement, match="a vote is final"):
        votes.service().undo("ann", "undo-0001")
    assert len(read_votes(votes.path)) == 1


def test_a_skip_reveals_nothing_is_no_vote_and_the_pair_does_not_come_back(votes: Votes) -> None:
    shown = votes.service().tasks("ann")[0].texts
    assert vote(votes, "ann", "skip").reveal is None
    assert read_votes(votes.path) == [] and votes_digest(votes.path) is None
    for _ in range(5):
        assert set(votes.service().tasks("ann")[0].texts) != set(shown)
        vote(votes, "ann")
    assert votes.service().work("ann").state == "done"


def test_ideal_answers_are_not_written_to_held_out_prompts(votes: Votes) -> None:
    token = votes.service().tasks("ann")[0].token
    with pytest.raises(BadJudgement, match="on the labelling page"):
        votes.service().demonstrate("ann", IdealCompletion("write-0001", token, "The best answer."))


def test_what_is_on_screen_stays_with_its_sides_and_votes_outlive_the_server(votes: Votes, campaign: Any) -> None:
    vote(votes, "ann")
    before = votes.service().tasks("ann")
    assert votes.service().tasks("ann") == before
    votes.close()
    assert len(read_votes(votes.path)) == 1
    assert [one.name for one in campaign.dir.glob("votes*")] == ["votes.sqlite"], "reading leaves nothing beside it"
    again = Votes(campaign.dir, campaign.label())
    assert again.service().tasks("ann") == before and len(read_votes(again.path)) == 1
    again.close()


def test_people_vote_on_different_prompts_first_and_on_every_prompt_in_the_end(votes: Votes) -> None:
    for person in ("ann", "bob", "bob", "ann"):
        vote(votes, person)
    said = Counter(one.prompt_id for one in read_votes(votes.path))
    assert len(said) == 4, "more prompts make an interval over prompts narrower, more votes on the same do not"
    for person in ("ann", "bob") * 4:
        vote(votes, person)
    said = Counter(one.prompt_id for one in read_votes(votes.path))
    assert set(said.values()) == {2} and votes.service().work("bob").state == "done"
    with votes.service().store.read() as db:
        left = Counter(db.scalars(sa.select(view.c.drawn[0])))
    assert set(left) == {0, 1} or len(left) == 1, "sides are drawn for each of them"


def test_two_people_at_once_lose_no_vote(votes: Votes) -> None:
    def all_of_them(person: str) -> int:
        number = 0
        while votes.service().tasks(person):
            vote(votes, person, "ab"[number % 2])
            number += 1
        return number

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(all_of_them, ["ann", "bob"])) == [6, 6]
    assert Counter(one.voter for one in read_votes(votes.path)) == {"ann": 6, "bob": 6}


def test_a_comparison_that_ran_again_is_asked_about_and_its_old_votes_are_kept_apart(
    votes: Votes, campaign: Any
) -> None:
    prefer(votes, "ann", "aligned")
    held = votes.service().tasks("ann")[0]
    digest = votes_digest(votes.path)
    compare(campaign.dir, aligned=lambda i, k: f"New {i}.{k}, better.")
    fresh = votes.service().tasks("ann")
    assert all(any("better" in text for text in task.texts) for task in fresh)
    with pytest.raises(StaleToken, match="not asked about any more"):
        votes.service().label("ann", Judgement("late-0001", held.token, "a"))
    assert votes_digest(votes.path) == digest and votes.figures().on_other_texts == 1
    assert votes.figures().win_rate is None
    compare(campaign.dir)  # the very texts again
    assert votes.figures().votes == 1


# ---- The running figure -----------------------------------------------------------------------------------------


def test_the_running_win_rate_counts_a_tie_as_half_and_keeps_votes_on_one_prompt_together(votes: Votes) -> None:
    assert votes.figures().win_rate is None
    for person in ("ann", "bob"):
        for policy in ("aligned", "aligned", "aligned", "aligned", "sft"):
            prefer(votes, person, policy)
        vote(votes, person, "tie")
    figures = votes.figures()
    rate = figures.win_rate
    assert rate is not None and rate.value is not None
    assert rate.ci_low is not None and rate.ci_high is not None
    assert (rate.wins, rate.ties, rate.losses) == (8, 2, 2) and rate.value == pytest.approx(9 / 12)
    assert rate.n == 6 and rate.ci_low < 0.75 < rate.ci_high
    assert (figures.votes, figures.voters, figures.pairs) == (12, 2, 6)


def test_swapping_the_policies_turns_the_win_rate_over() -> None:
    outcomes = [1.0, 1.0, 0.5, 0.0, 1.0, 0.5, 1.0]
    votes = [Vote(str(i), f"p{i % 5}", 0, 1, "x", "y", value, "ann", 1.0) for i, value in enumerate(outcomes)]
    swapped = [Vote(one.vote_id, one.prompt_id, 1, 0, "y", "x", 1 - one.outcome, "ann", 1.0) for one in votes]
    rate, other = running_win_rate(votes), running_win_rate(swapped)
    assert rate and other and rate.interval.value == 1 - other.interval.value
    assert (rate.wins, rate.ties, rate.losses) == (other.losses, other.ties, other.wins)
    assert running_win_rate([]) is None


def test_the_digest_follows_the_votes(votes: Votes) -> None:
    digests = {votes_digest(votes.path)}
    for _ in range(3):
        vote(votes, "ann")
        digests.add(votes_digest(votes.path))
    assert len(digests) == 4 and votes_digest(votes.path) in digests


# ---- Apart from training ----------------------------------------------------------------------------------------


@pytest.fixture
def labelled(campaign: Any, votes: Votes) -> Any:
    """The campaign's label configuration, with every campaign pair labelled."""
    config = campaign.label()
    app = label_app(config)
    service = app.state.service
    while tasks := service.tasks("ann"):
        service.label("ann", Judgement(f"label-{tasks[0].token}", tasks[0].token, "a"))
    app.state.people.store.close()
    return config


def preferences(config: Any) -> list[dict[str, Any]]:
    return [values for _, values in read_jsonl(runs.stage_dir(config.run_dir, "label") / "preferences.jsonl")]


def test_no_vote_is_a_training_preference_unless_it_is_promoted(labelled: Any, votes: Votes) -> None:
    run_label_stage(labelled)
    before = preferences(labelled)
    while votes.service().tasks("ann"):
        prefer(votes, "ann", "aligned")
    assert labelled.fingerprint() == runs.open_stage(labelled.run_dir, "label").manifest.fingerprint
    run_label_stage(labelled)
    assert preferences(labelled) == before
    assert not [problem for problem in verify(labelled.run_dir).problems if "votes" in problem]


def test_promoted_votes_are_labels_of_people_that_say_where_they_came_from(labelled: Any, votes: Votes) -> None:
    for policy in ("aligned", "sft", "aligned"):
        prefer(votes, "ann", policy)
    vote(votes, "bob", "tie", note="both fine")
    vote(votes, "bob", "skip")
    said = promote(labelled)
    assert "4 of 4 votes promoted to labels (the others were labels already), by 2 people" in said
    assert "the label stage is out of date now" in said
    again = promote(labelled)
    assert "0 of 4 votes promoted" in again and "out of date" not in again
    campaign_pairs = len(preferences(labelled)) if (labelled.run_dir / "labels/preferences.jsonl").exists() else None
    assert campaign_pairs is None, "promotion writes to the store alone"
    run_label_stage(labelled)
    rows = [row for row in preferences(labelled) if row["sampler"].get("asked") == "vote on a comparison"]
    assert len(rows) == 3 and {row["source"] for row in rows} == {"human"}
    for row in rows:
        whose = ["aligned" if row[side][0]["content"].startswith("New") else "sft" for side in ("chosen", "rejected")]
        assert {answer["policy"] for answer in row["sampler"]["answers"]} == set(whose)
        prompt = Prompt(prompt=row["prompt"])
        assert row["split"] == ("heldout" if is_heldout(prompt.prompt, labelled.split) else "train")
        assert row["display_first"] in ("chosen", "rejected") and not row["chosen_finished"]
    assert Counter(row["chosen"][0]["content"][:3] for row in rows) == {"New": 2, "Old": 1}
    assert {row["label_id"] for row in rows} <= {one.vote_id for one in read_votes(votes.path)}


@pytest.mark.parametrize("promoted_before", [False, True])
def test_promotion_counts_the_votes_on_earlier_comparisons_that_stay_votes(
    labelled: Any, votes: Votes, promoted_before: bool
) -> None:
    for _ in range(3):
        prefer(votes, "ann", "aligned")
    if promoted_before:
        promote(labelled)
    second = round_dir(labelled.run_dir, 2)
    shutil.copytree(labelled.run_dir / "compare", second / "compare")
    of_second = Votes(second, labelled)
    vote(of_second, "bob")
    of_second.close()
    said = promote(labelled)
    assert f"{of_second.path}: 1 of 1 votes promoted" in said
    assert (f"{votes.path}: 3 votes on an earlier comparison stay votes" in said) != promoted_before


def test_promotion_counts_what_is_held_out_and_warns_of_what_is_not(labelled: Any, votes: Votes) -> None:
    while votes.service().tasks("ann"):
        vote(votes, "ann")
    everything = labelled.model_copy(update={"split": labelled.split.model_copy(update={"heldout_fraction": 0.999})})
    said = promote(everything)
    assert "6 of 6 are of held-out prompts: nothing trains on them" in said and "will train" not in said
    nothing = labelled.model_copy(update={"split": labelled.split.model_copy(update={"heldout_fraction": 1e-9})})
    assert "6 are of prompts that the split does not hold out any more" in promote(nothing)


def test_the_split_decides_anew_about_promoted_votes(labelled: Any, votes: Votes) -> None:
    while votes.service().tasks("ann"):
        vote(votes, "ann")
    promote(labelled.model_copy(update={"split": labelled.split.model_copy(update={"heldout_fraction": 1e-9})}))
    run_label_stage(labelled)
    for row in preferences(labelled):
        heldout = is_heldout(Prompt(prompt=row["prompt"]).prompt, labelled.split)
        assert row["split"] == ("heldout" if heldout else "train")


def test_undo_on_the_labelling_page_does_not_reach_a_promoted_vote(labelled: Any, votes: Votes) -> None:
    vote(votes, "zoe")
    promote(labelled)
    app = label_app(labelled)
    assert app.state.service.undo("zoe", "undo-0001").undone is False
    app.state.people.store.close()


def test_promotion_without_votes_or_with_another_source_of_labels_says_so(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    with pytest.raises(DataError, match=r"votes\.sqlite: there are no votes yet; .*trueup serve"):
        promote(config)
    compare(campaign.dir)
    votes = Votes(campaign.dir)
    vote(votes, "ann", "skip")
    with pytest.raises(DataError, match="holds no votes yet"):
        promote(config)
    vote(votes, "ann")
    votes.close()
    assert "label.source is simulated: they are exported once label.also_use names human" in promote(config)


def test_the_command_says_what_it_promoted(votes: Votes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vote(votes, "ann")
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"name: mine\nrun_dir: {votes.path.parent}\nsft: {{data: [starter]}}\nsample: {{prompts: starter}}\n"
    )
    capsys.readouterr()
    assert main(["labels", "promote", str(file)]) == 0
    assert "1 of 1 votes promoted to labels" in capsys.readouterr().out


# ---- The API ----------------------------------------------------------------------------------------------------


@pytest.fixture
def app(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`trueup serve` over a campaign with a label store, a comparison, an admin Root and annotators Ann and Bob."""
    monkeypatch.setattr("ui.people.passwords._LOG2_N", 4)  # what a hash costs is tested elsewhere
    config = campaign.label()
    label_app(config).state.people.store.close()
    runs.begin(config)
    compare(campaign.dir)
    made = run_app(campaign.dir)
    for name, role in (("Root", "admin"), ("Ann", "annotator"), ("Bob", "annotator")):
        made.state.people.add(name, role, PASSWORD)
    yield made
    made.state.people.store.close()
    made.state.votes.close()


def session_of(app: Any, name: str) -> str:
    people = app.state.people
    return str(people.open_session(next(row.account_id for row in people.accounts() if row.name == name)))


@pytest.fixture
def browser(app: Any) -> Callable[..., TestClient]:
    def of(name: str | None = None, inside: Any = None) -> TestClient:
        client = TestClient(inside or app, base_url=URL, follow_redirects=False)
        if name is not None:
            client.cookies.set(COOKIE, session_of(app, name))
        return client

    return of


def press(client: TestClient, token: str, choice: str = "a", **values: Any) -> Any:
    body = {"client_uuid": str(uuid.uuid4()), "token": token, "choice": choice, **values}
    return client.post(f"{API}/labels", json=body)


def test_annotators_vote_and_only_admins_see_the_win_rate(browser: Any, app: Any) -> None:
    statuses = {}
    for name in (None, "Ann", "Root"):
        client = browser(name)
        statuses[name] = [client.get(path).status_code for path in (f"{API}/tasks", "/vote/", "/api/v1/admin/votes")]
    assert statuses == {None: [401, 401, 401], "Ann": [200, 200, 403], "Root": [200, 200, 200]}
    ann, root = browser("Ann"), browser("Root")
    work = ann.get(f"{API}/tasks")
    TypeAdapter(Opening).validate_json(work.content, strict=True)
    assert work.json()["settings"]["reveals"] and not work.json()["settings"]["sees_figures"]
    assert root.get(f"{API}/tasks").json()["settings"]["sees_figures"]
    done = press(ann, work.json()["tasks"][0]["token"])
    TypeAdapter(Recorded[RenderedTask]).validate_json(done.content, strict=True)
    assert sorted(done.json()["reveal"].values()) == ["aligned", "sft"]
    assert root.get("/api/v1/admin/votes").json()["votes"] == 1
    for client in (ann, root):
        assert "/vote" in client.get("/").text
    assert ann.get("/vote/gradio_api/info").status_code == 404 and ann.get("/vote/theme.css").status_code == 200
    assert ann.post("/vote/gradio_api/run/predict", json={"data": [], "fn_index": 0}).status_code == 403
    (pseudonym,) = {one.voter for one in read_votes(app.state.votes.path)}
    assert pseudonym == next(row.pseudonym for row in app.state.people.accounts() if row.name == "Ann")


def test_labels_and_votes_do_not_mix(browser: Any, app: Any) -> None:
    ann = browser("Ann")
    voted, labelled = (ann.get(f"{path}/tasks").json() for path in (API, "/api/v1"))
    assert voted["settings"]["campaign"] != labelled["settings"]["campaign"]
    assert not labelled["settings"]["reveals"]
    token = voted["tasks"][0]["token"]
    refused = ann.post("/api/v1/labels", json={"client_uuid": str(uuid.uuid4()), "token": token, "choice": "a"})
    assert refused.status_code == 409
    label = {"client_uuid": str(uuid.uuid4()), "token": labelled["tasks"][0]["token"], "choice": "a"}
    assert ann.post("/api/v1/labels", json=label).json()["reveal"] is None
    assert read_votes(app.state.votes.path) == []


def test_undo_is_refused_in_words(browser: Any) -> None:
    refused = browser("Ann").post(f"{API}/undo", json={"client_uuid": str(uuid.uuid4())})
    assert refused.status_code == 422 and "a vote is final" in refused.json()["detail"]


def test_without_a_comparison_the_page_says_so_and_not_where_the_run_is(campaign: Any, capfd: Any) -> None:
    made = run_app(campaign.dir)
    client = TestClient(made, base_url=URL)
    client.cookies.set(COOKIE, made.state.people.open_session(None))
    assert 'href="/vote"' not in client.get("/").text
    answer = client.get(f"{API}/tasks")
    assert answer.status_code == 503 and "nothing to do here yet" in answer.text
    assert str(campaign.dir) not in answer.text and "trueup compare CONFIG" in capfd.readouterr().out
    assert client.get("/api/v1/admin/votes").status_code == 503
    made.state.people.store.close()


def test_no_byte_before_a_vote_says_whose_answer_is_whose(app: Any, browser: Any, campaign: Any) -> None:
    votes = app.state.votes
    store = votes.service().store
    recorder = Recorder(app)
    pseudonym = next(row.pseudonym for row in app.state.people.accounts() if row.name == "Ann")
    found = secrets_of(campaign.label(), store, pseudonym)
    found += [Secret(word, "what the comparison knows") for word in ("987654", "0.8765432", "reward_model", '"sft"')]
    report = Report(found, [f"Old {i}.{k}. New {i}.{k}, because." for i in range(6) for k in range(2)])
    ann = browser("Ann", recorder)
    for path in ("/", "/vote/", "/vote/config", f"{API}/tasks", f"{API}/mirror", "/api/v1/admin/votes"):
        ann.get(path, headers={"Accept": "text/html, */*"})
    first = 0
    for number in range(6):
        waiting = ann.get(f"{API}/tasks").json()["tasks"]
        first += waiting[0]["answers"][0]["text"].startswith("Old")
        press(ann, "not-a-token")
        press(ann, waiting[0]["token"], "c")
        while recorder.finished:
            report.check(recorder.finished.popleft())
        done = press(ann, waiting[0]["token"], "skip" if number == 2 else "a")
        recorder.finished.clear()  # the reveal is not blind
        told = done.json()
        assert told["reveal"] is None if number == 2 else set(told["reveal"]) == {"a", "b"}
        assert all(set(task) == {"token", "prompt", "answers", "wants_rationale", "practice"} for task in told["tasks"])
    assert report.responses > 20 and list(report.hits) == []


def test_sides_are_drawn_evenly(campaign: Any) -> None:
    compare(campaign.dir, prompts=1)
    votes = Votes(campaign.dir)
    left = Counter(votes.service().tasks(f"person {number}")[0].texts[0][:3] for number in range(20))
    with votes.service().store.read() as db:
        assert Counter(db.scalars(sa.select(slot.c.state))) == {"leased": 20}
        assert len(list(db.scalars(sa.select(event.c.event_id)))) == 0
    assert 1 < left["New"] < 19  # chance of less: 4 in 100,000
    votes.close()
