"""The label stage: what each source exports, and when it waits for people."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import another_base
import pytest

from trueup import runs
from trueup.campaign import why_stale
from trueup.data.records import CandidateSet, Demonstration, Message, Preference, Ranking, read_rows
from trueup.data.rubric import RUBRICS
from trueup.data.split import is_heldout
from trueup.errors import DataError, LabelsPending, ModelError
from trueup.models.loading import load_base_tokenizer
from ui.label.run import prepare, run
from ui.labels import assignment
from ui.labels.config import LabelConfig
from ui.labels.items import ProgramLabel
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tasks import IdealCompletion, Judgement, Settings
from ui.sources.report import share

AnswersTo = Callable[..., CandidateSet]


def rankings(config: LabelConfig) -> list[Ranking]:
    return read_rows(runs.stage_dir(config.run_dir, "label") / "rankings.jsonl", Ranking)


def pairs(config: LabelConfig) -> list[Preference]:
    return read_rows(runs.stage_dir(config.run_dir, "label") / "preferences.jsonl", Preference)


def report(config: LabelConfig) -> dict[str, Any]:
    return json.loads((runs.stage_dir(config.run_dir, "label") / "report.json").read_text())


def findings(config: LabelConfig) -> set[str]:
    return {found.code for found in runs.open_stage(config.run_dir, "label").manifest.verdict.findings}


def label_as_person(config: LabelConfig, number: int, better: str, annotator: str = "ann") -> None:
    """Prefer the answer that starts with `better`, on whatever side it is; a tie where there is none."""
    with labelling(config) as asked:
        for _ in range(number):
            task = asked.tasks(annotator)[0]
            places = [place for place, text in enumerate(task.texts) if text.startswith(better)]
            choice = "ab"[places[0]] if len(places) == 1 else "tie"
            asked.label(annotator, Judgement(f"{annotator}-{task.token}", task.token, choice))


@contextmanager
def labelling(config: LabelConfig) -> Iterator[LabelService]:
    """The campaign's service, as the labelling page has it."""
    store = Store(config.store_url)
    prepare(config, store)
    yield LabelService(store, Settings.of(config))
    store.close()


# ---- Simulated --------------------------------------------------------------------------------------------------


def test_simulated_labels_rank_all_answers_as_the_rubric_scores_them(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    run(config)
    rows = rankings(config)
    assert len(rows) == 6 and {row.annotator for row in rows} == {"rubric:says-why"}
    rubric = RUBRICS["says-why"]
    for row in rows:
        scores = [
            rubric.score(row.prompt, text, done) for text, done in zip(row.completions, row.finished, strict=True)
        ]
        in_order = [[scores[index] for index in tier] for tier in row.tiers]
        assert all(len(set(tier)) == 1 for tier in in_order)
        assert [tier[0] for tier in in_order] == sorted(set(scores), reverse=True)
    assert pairs(config)
    for pair in pairs(config):
        text, worse = pair.chosen[0].content, pair.rejected[0].content
        assert rubric.score(pair.prompt, text, True) > rubric.score(pair.prompt, worse, True)
        assert pair.source == "simulated"


def test_simulated_labels_say_that_no_person_said_them(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    run(config)
    manifest = runs.open_stage(config.run_dir, "label").manifest
    assert "simulated_labels" in findings(config) and "few_labels" in findings(config)
    assert manifest.labels is not None and manifest.labels.by_source == {"simulated": 6}
    assert report(config)["by_split"].keys() <= {"train", "heldout"}


def test_running_the_stage_again_adds_no_row_and_changes_no_label(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    run(config)
    before = rankings(config)
    run(config)
    assert rankings(config) == before


def test_labels_about_earlier_answers_stay_in_the_store_and_out_of_the_export(
    campaign: Any, answers_to: AnswersTo
) -> None:
    config = campaign.label(source="simulated")
    run(config)
    campaign.sampled([answers_to("Another question?", ["Yes.", "No, because it is late."])], seed=1)
    run(config)
    assert [row.prompt[0].content for row in rankings(config)] == ["Another question?"]
    assert len(Store(config.store_url).rankings(["simulated"])) == 7


def test_pairs_of_one_text_are_dropped_and_counted(campaign: Any, answers_to: AnswersTo) -> None:
    row = answers_to("Same?", ["The same answer.", "The same answer.", "Another."])
    cut = row.candidates[1].model_copy(update={"finished": False})
    campaign.sampled([row.model_copy(update={"candidates": [row.candidates[0], cut, row.candidates[2]]})], seed=1)
    config = campaign.label(source="simulated")
    run(config)
    assert report(config)["dropped"] == {"identical": 1}
    assert all(pair.chosen != pair.rejected for pair in pairs(config))


def test_length_that_explains_the_labels_is_found(campaign: Any, answers_to: AnswersTo) -> None:
    rows = [answers_to(f"Question {i}?", [f"Short {i}.", f"This answer, number {i}, is longer."]) for i in range(20)]
    campaign.sampled(rows, seed=1)
    config = campaign.label(source="human")
    with pytest.raises(LabelsPending):
        run(config)
    label_as_person(config, 20, better="This")
    run(config)
    length = report(config)["length_baseline"]
    assert (length["value"], length["n"]) == (1.0, 20) and length["ci_low"] == pytest.approx(0.8389, abs=1e-3)
    assert "length_explains" in findings(config)


def test_the_wilson_interval_is_the_published_one() -> None:
    """Newcombe 1998, table I: 81 of 263 gives 0.2553 to 0.3662; 0 of 20 gives 0 to 0.1611."""
    interval, of_none = share(81, 263), share(0, 20)
    assert interval.ci_low is not None and interval.ci_high is not None and of_none.ci_high is not None
    assert (round(interval.ci_low, 4), round(interval.ci_high, 4)) == (0.2553, 0.3662)
    assert (of_none.ci_low, round(of_none.ci_high, 4)) == (0.0, 0.1611)


# ---- Human ------------------------------------------------------------------------------------------------------


def test_human_labels_are_waited_for_and_then_exported(campaign: Any) -> None:
    config = campaign.label(source="human")
    with pytest.raises(LabelsPending, match=r"0 labels of people so far.*6 of 6 pairs") as wanted:
        run(config)
    assert "trueup label CONFIG" in str(wanted.value)
    assert runs.find_stage(config.run_dir, "label") is None
    label_as_person(config, 2, better="Freeze")
    with pytest.raises(LabelsPending, match=r"2 labels .* 4 of 6 pairs wait"):
        run(config)
    label_as_person(config, 4, better="Freeze")
    run(config)
    assert report(config)["by_source"] == {"human": 6} and report(config)["by_annotator"] == {"ann": 6}
    for pair in pairs(config):
        assert pair.chosen[0].content.startswith("Freeze") and not pair.rejected[0].content.startswith("Freeze")
    assert report(config)["ties"] + len(pairs(config)) == 6
    assert report(config)["left_choice"]["n"] == len(pairs(config))


def test_simulated_labels_do_not_count_as_peoples(campaign: Any) -> None:
    run(campaign.label(source="simulated"))
    config = campaign.label(source="human")
    with pytest.raises(LabelsPending, match="0 labels of people"):
        run(config)
    label_as_person(config, 6, better="Eat")
    run(config)
    assert {row.source for row in rankings(config)} == {"human"}


def test_two_sources_are_exported_together_only_when_asked(campaign: Any) -> None:
    config = campaign.label(source="simulated", also_use=["human"])
    run(config)
    assert {row.source for row in rankings(config)} == {"simulated"}
    label_as_person(config, 3, better="Eat")
    run(config)
    assert report(config)["by_source"] == {"human": 3, "simulated": 6}


def test_a_rubric_of_ones_own_labels_and_its_file_is_an_input(campaign: Any, tmp_path: Path) -> None:
    config = campaign.label(source="simulated", rubric=f"{tmp_path}/mine.py:short")
    file = tmp_path / "mine.py"
    file.write_text("def short(prompt, text, finished):\n    return -len(text)\n")
    run(config)
    assert {row.annotator for row in rankings(config)} == {"rubric:mine.py:short"}
    for pair in pairs(config):
        assert len(pair.chosen[0].content) < len(pair.rejected[0].content)
    assert why_stale(config) is None
    file.write_text("def short(prompt, text, finished):\n    return len(text)\n")
    assert why_stale(config) == f"{file} has changed"
    file.write_text("def short(prompt, text, finished):\n    return None\n")
    with pytest.raises(DataError, match="gave None; a finite number is wanted"):
        run(config)


def test_what_another_rubric_said_of_the_same_answers_is_not_exported(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    run(config)
    before = rankings(config)
    store = Store(config.store_url)
    verdicts = [ProgramLabel(item_id, [[1], [0]]) for item_id in store.judged("simulated", "rubric:says-why")]
    store.put("simulated", "rubric:of-last-week", verdicts)
    store.close()
    run(config)
    assert verdicts and rankings(config) == before


def test_a_new_label_of_a_person_makes_the_stage_stale(campaign: Any) -> None:
    config = campaign.label(source="human", target_labels=2)
    with pytest.raises(LabelsPending):
        run(config)
    label_as_person(config, 2, better="Eat")
    run(config)
    assert why_stale(config) is None
    label_as_person(config, 1, better="Eat")
    assert (why_stale(config) or "").startswith("labels in the store: ")


def test_how_people_are_asked_makes_no_label_stale_that_is_there(campaign: Any) -> None:
    run(campaign.label(source="simulated"))
    for values in ({"labels_per_pair": 3}, {"repeat_share": 0.2}, {"scale": "plain"}, {"guideline": "Be strict."}):
        assert why_stale(campaign.label(source="simulated", **values)) is None
    assert why_stale(campaign.label(source="human", also_use=["simulated"])) is not None


def test_a_skipped_pair_does_not_keep_the_campaign_waiting(campaign: Any) -> None:
    config = campaign.label(source="human")
    with pytest.raises(LabelsPending):
        run(config)
    with labelling(config) as asked:
        asked.label("ann", Judgement("skip-0001", asked.tasks("ann")[0].token, "skip"))
    label_as_person(config, 5, better="Eat")
    run(config)
    assert report(config)["labels"] == 5 and report(config)["skips"] == {"human": 1}


def test_more_target_labels_than_pairs_says_what_to_change(campaign: Any) -> None:
    config = campaign.label(source="human", target_labels=50)
    with pytest.raises(LabelsPending):
        run(config)
    label_as_person(config, 6, better="Eat")
    with pytest.raises(
        LabelsPending, match=r"every pair is labelled: lower label.target_labels .or labels_per_round. or raise"
    ):
        run(config)


def test_people_are_never_asked_about_two_equal_answers(campaign: Any, answers_to: AnswersTo) -> None:
    campaign.sampled([answers_to("Same?", ["The same.", "The  same.", "The same."])], seed=1)
    with pytest.raises(DataError, match="no two sampled answers to a prompt differ"):
        run(campaign.label(source="human"))


def test_several_labels_of_each_pair_are_waited_for(campaign: Any) -> None:
    config = campaign.label(labels_per_pair=2)
    label_as_person(config, 6, better="Eat", annotator="ann")
    with pytest.raises(LabelsPending, match=r"6 labels of people so far .* 6 of 6 pairs wait"):
        run(config)
    label_as_person(config, 6, better="Freeze", annotator="bob")
    run(config)
    assert report(config)["by_annotator"] == {"ann": 6, "bob": 6}


def test_rankings_of_people_are_exported_whole_and_as_pairs(campaign: Any) -> None:
    config = campaign.label(task="ranking", target_labels=2)
    with labelling(config) as asked:
        for number in range(2):
            task = asked.tasks("ann")[0]
            assert len(task.texts) == 3
            order = sorted(range(3), key=lambda place: task.texts[place])  # Eat, Freeze, Wrap
            asked.label("ann", Judgement(f"label-{number:04}", task.token, order=[[order[0]], order[1:]]))
    run(config)
    assert [row.label_id for row in rankings(config)] == ["label-0000", "label-0001"]
    for row in rankings(config):
        assert [sorted(row.completions[i][:3] for i in tier) for tier in row.tiers] == [["Eat"], ["Fre", "Wra"]]
    assert len(pairs(config)) == 4 and all(pair.chosen[0].content.startswith("Eat") for pair in pairs(config))


def test_every_exclusion_is_counted_beside_the_results(campaign: Any) -> None:
    config = campaign.label(target_labels=2)
    with labelling(config) as asked:
        for number, choice in enumerate(["a", "skip", "flag", "b"]):
            task = asked.tasks("ann")[0]
            asked.label("ann", Judgement(f"label-{number:04}", task.token, choice, note="broken"))
    run(config)
    counted = {key: report(config)[key] for key in ("labels", "skips", "flags", "late")}
    assert counted == {"labels": 2, "skips": {"human": 1}, "flags": {"human": 1}, "late": {"human": 0}}


def test_answers_that_say_which_model_they_are_are_reported_and_kept(campaign: Any, answers_to: AnswersTo) -> None:
    campaign.sampled(
        [answers_to("Who?", ["I am ChatGPT.", "Nobody."]), answers_to("What?", ["This.", "That."])], seed=1
    )
    config = campaign.label()
    label_as_person(config, 2, better="I am")
    run(config)
    found = report(config)["self_identified"]
    assert (found["labels"], found["of"], found["phrases"]) == (1, 2, ["I am ChatGPT"])
    assert found["label_ids"] == [row.label_id for row in rankings(config) if "I am ChatGPT." in row.completions]
    assert "self_identified" in findings(config) and len(rankings(config)) == 2


def test_ideal_answers_become_demonstrations_and_stand_above_what_was_shown(campaign: Any) -> None:
    config = campaign.label()
    with labelling(config) as asked:
        first, second = asked.tasks("ann")[:2]
        asked.demonstrate("ann", IdealCompletion("ideal-0001", first.token, "Keep it in the freezer."))
        asked.demonstrate("ann", IdealCompletion("ideal-0002", second.token, second.texts[0]))
    label_as_person(config, 6, better="Eat")
    run(config)
    folder = runs.stage_dir(config.run_dir, "label")
    row, _ = read_rows(folder / "demonstrations.jsonl", Demonstration)
    assert row.messages[-1] == Message(role="assistant", content="Keep it in the freezer.")
    assert report(config)["demonstrations"] == 2
    ideals = read_rows(folder / "ideals.jsonl", Preference)
    expected = {("Keep it in the freezer.", text) for text in first.texts} | {(second.texts[0], second.texts[1])}
    assert {pair.texts for pair in ideals} == expected and len(ideals) == 3, "what equals an answer is not above it"
    assert all(pair.ideal and pair.source == "human" and pair.annotator == "ann" for pair in ideals)
    assert not {pair.label_id for pair in ideals} & {pair.label_id for pair in pairs(config)}


def test_without_ideal_answers_there_is_no_file_of_them(campaign: Any) -> None:
    config = campaign.label(source="simulated")
    run(config)
    assert not (runs.stage_dir(config.run_dir, "label") / "ideals.jsonl").exists()


# ---- Known answers ----------------------------------------------------------------------------------------------


@pytest.fixture
def known(tmp_path: Path) -> Path:
    """Eight pairs with known answers, one of them contradicted by a second annotator, one of equal texts."""
    rows = [{"prompt": f"Known {i}?", "chosen": f"right {i}", "rejected": f"wrong {i}"} for i in range(7)]
    rows += [{"prompt": "Known 6?", "chosen": "wrong 6", "rejected": "right 6", "annotator": "other"}]
    rows += [{"prompt": "Known 6?", "chosen": "right 6", "rejected": "wrong 6"}]
    rows += [{"prompt": "Same?", "chosen": "the same", "rejected": "the  same"}]
    path = tmp_path / "gold.jsonl"
    path.write_text("".join(json.dumps(row | {"explanation": "It is."}) + "\n" for row in rows), encoding="utf-8")
    return path


def test_known_answers_are_read_and_what_cannot_be_used_is_counted(campaign: Any, known: Path) -> None:
    config = campaign.label(gold=known)
    with pytest.raises(LabelsPending):
        run(config)
    with labelling(config) as asked:
        assert len(asked.store.gold("check")) == 6
    label_as_person(campaign.label(gold=known, gold_share=0.0), 6, better="Eat")
    run(config)
    (entry,) = runs.open_stage(config.run_dir, "label").manifest.inputs
    assert (entry.path, entry.rows) == (str(known), 6)
    assert entry.dropped == {"identical answers": 1, "its annotators contradict each other": 1}
    assert why_stale(config) is None
    known.write_text(known.read_text() + "\n" + known.read_text().splitlines()[0].replace("Known 0", "Known 9"))
    assert "has changed" in (why_stale(config) or "")


@pytest.mark.parametrize("exclude", [False, True])
def test_who_fails_the_hidden_checks_is_reported_and_left_out_only_when_asked(
    campaign: Any, known: Path, exclude: bool
) -> None:
    config = campaign.label(gold=known, labels_per_pair=2, exclude_failed_gold=exclude)
    for annotator, prefix in (("ann", "right"), ("bob", "wrong")):
        with labelling(config) as asked:
            for name in [one.item_id for one in asked.store.gold("check")]:  # all of them, and not by chance
                with asked.store.write_as(annotator) as db:
                    assignment.show(db, annotator, name, [0, 1], "gold")
            while tasks := asked.tasks(annotator):
                place = next((i for i, text in enumerate(tasks[0].texts) if text.startswith(prefix)), 0)
                asked.label(annotator, Judgement(f"{annotator}-{tasks[0].token}", tasks[0].token, "ab"[place]))
    run(config)
    gold = report(config)["gold"]
    assert {name: (found["right"], found["n"], found["passed"]) for name, found in gold.items()} == {
        "ann": (6, 6, True),
        "bob": (0, 6, False),
    }
    assert "failed_gold" in findings(config)
    assert report(config)["by_annotator"] == ({"ann": 6} if exclude else {"ann": 6, "bob": 6})
    dropped = report(config)["dropped"].get("labels of annotators who failed gold")
    assert dropped == (6 if exclude else None)
    assert not any(row.prompt[0].content.startswith("Known") for row in rankings(config))


# ---- Reward model -----------------------------------------------------------------------------------------------


def test_a_prompt_with_an_answer_that_the_reward_model_cannot_read_is_skipped_and_the_others_are_ranked(
    campaign: Any,
    answers_to: AnswersTo,
    bases: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores = another_base.reward_model(tmp_path / "scores", bases("llama"))
    campaign.sampled([answers_to("Short?", ["one", "two"]), answers_to("Long?", ["one", "red " * 300])])
    config = campaign.label(source="reward_model", reward_model=str(scores))
    load_base_tokenizer(config.model).save_pretrained(runs.stage_dir(config.run_dir, "sft") / "model")
    run(config)
    assert [row.prompt[0].content for row in rankings(config)] == ["Short?"]
    assert "1 prompts ranked, 1 skipped" in capsys.readouterr().out
    assert report(config)["skips"] == {"reward_model": 1}
    chosen = runs.open_stage(config.run_dir, "label").manifest.chat_template
    assert chosen and chosen.startswith("chat template own (the tokenizer brings it), end of turn ")


# ---- Selection --------------------------------------------------------------------------------------------------


def test_pairs_that_a_reward_model_leaves_open_come_first(campaign: Any, answers_to: AnswersTo, tmp_path: Path) -> None:
    rows = [answers_to(f"Question {i}?", ["one", "two", "three"]) for i in range(100)]
    campaign.sampled(rows, seed=1)
    scores = tmp_path / "scores.jsonl"
    lines = [{"prompt_id": row.prompt_id, "scores": [0.0, 0.0, 20.0]} for row in rows]  # open: one against two
    scores.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    config = campaign.label(selection="uncertainty", scores=scores, control_share=0.2)
    with labelling(config) as asked:
        chosen = list(asked.store.asked().values())
        assert len(chosen) == 100
        by = Counter(one.selection for one in chosen)
        assert 5 <= by["random"] <= 40
        said = []
        for _ in range(20):
            task = asked.tasks("ann")[0]
            said.append(set(task.texts))
            asked.label("ann", Judgement(f"ann-{task.token}", task.token, "a"))
        assert said.count({"one", "two"}) > 10
        labelled = {row.label_id: (row.selection, row.propensity) for row in asked.store.rankings(["human"])}
    assert all(propensity for _, propensity in labelled.values())
    # Chosen again, after more was said: what is begun stays, with the selection that chose it.
    with pytest.raises(LabelsPending, match="20 labels of people"):
        run(config)
    with labelling(config) as asked:
        assert len(asked.store.asked()) == 100 and asked.progress("ann").mine == 20
        again = {row.label_id: (row.selection, row.propensity) for row in asked.store.rankings(["human"])}
    assert again == labelled


def test_a_pair_of_an_answer_without_a_score_is_as_open_as_any(
    campaign: Any, answers_to: AnswersTo, tmp_path: Path
) -> None:
    row = answers_to("Question?", ["one", "two", "three"])
    campaign.sampled([row], seed=1)
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"prompt_id": row.prompt_id, "scores": [0.0, None, 20.0]}), encoding="utf-8")
    with labelling(campaign.label(selection="uncertainty", scores=path, pairs_per_prompt=3)) as asked:
        assert len(asked.store.asked()) == 3


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ({"scores": [0.0, 1.0]}, r"scores.jsonl:1: scores: 2 for 3 sampled answers"),
        ({"scores": [0.0, 1.0, "high"]}, r"scores.jsonl:1: scores.2"),
        ({"prompt_id": "another"}, "no scores for 1 of 1 prompts"),
    ],
)
def test_scores_that_do_not_fit_the_answers_are_refused_by_line(
    campaign: Any, answers_to: AnswersTo, tmp_path: Path, line: dict[str, Any], problem: str
) -> None:
    row = answers_to("Question?", ["one", "two", "three"])
    campaign.sampled([row], seed=1)
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps({"prompt_id": row.prompt_id, "scores": [0.0, 1.0, 2.0]} | line), encoding="utf-8")
    with pytest.raises(DataError, match=problem):
        run(campaign.label(selection="uncertainty", scores=path))


def test_the_page_starts_without_reading_the_answers_again(campaign: Any) -> None:
    config = campaign.label()
    label_as_person(config, 1, better="Eat")
    (runs.stage_dir(config.run_dir, "sample") / "candidates.jsonl").write_text("not read")
    label_as_person(config, 1, better="Eat")
    with pytest.raises(DataError):
        label_as_person(campaign.label(pairs_per_prompt=2), 1, better="Eat")


# ---- Import -----------------------------------------------------------------------------------------------------


def test_imported_preferences_keep_their_verdicts_and_follow_the_split(campaign: Any, tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    rows = [{"prompt": f"Imported {i}?", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(30)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = campaign.label(source="import", path=path)
    run(config)
    run(config)
    assert [pair.chosen[0].content for pair in pairs(config)] == [f"good {i}" for i in range(30)]
    assert [pair.rejected[0].content for pair in pairs(config)] == [f"bad {i}" for i in range(30)]
    for pair in pairs(config):
        assert pair.split == ("heldout" if is_heldout(pair.prompt, config.split) else "train")
        assert pair.source == "import" and pair.chosen_token_ids is None and pair.chosen_finished
    manifest = runs.open_stage(config.run_dir, "label").manifest
    assert [(entry.path, entry.rows) for entry in manifest.inputs] == [(str(path), 30)]
    assert manifest.parents == []


# ---- Judge ------------------------------------------------------------------------------------------------------


class Endpoint(ThreadingHTTPServer):
    """Answers like an OpenAI-compatible server: `reply` sees the question, gives a text or a status to fail with."""

    reply: Callable[[str], str | int]
    asked: list[dict[str, Any]]
    keys: list[str | None]
    finish_reason: str | None = "stop"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        self.server.keys.append(self.headers["Authorization"])
        said = self.server.reply(body["messages"][-1]["content"])
        self.send_response(said if isinstance(said, int) else 200)
        self.end_headers()
        if isinstance(said, str):
            choice = {"message": {"content": said}, "finish_reason": self.server.finish_reason}
            self.wfile.write(json.dumps({"choices": [choice]}).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setattr("trueup.judging.endpoint.RETRIES_AFTER_S", (0.01, 0.01))
    monkeypatch.setenv("OPENAI_API_KEY", "key-1")
    server = Endpoint(("127.0.0.1", 0), Handler)
    server.asked, server.keys = [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def judged(campaign: Any, endpoint: Endpoint, reply: Callable[[str], str | int]) -> LabelConfig:
    endpoint.reply = reply
    url = f"http://127.0.0.1:{endpoint.server_port}/v1"
    return campaign.label(source="judge", judge_url=url, judge_model="big-judge")


def prefers_longer(question: str) -> str:
    a, b = (question.split(f"<answer_{side}>\n")[1].split(f"\n</answer_{side}>")[0] for side in "AB")
    return "[[A]]" if len(a) > len(b) else "[[B]]"


def test_a_judge_that_agrees_with_itself_is_believed(campaign: Any, endpoint: Endpoint) -> None:
    config = judged(campaign, endpoint, prefers_longer)
    run(config)
    assert len(endpoint.asked) == 12 and set(endpoint.keys) == {"Bearer key-1"}
    assert len(pairs(config)) == 6 and {pair.annotator for pair in pairs(config)} == {"judge:big-judge"}
    assert all(len(pair.chosen[0].content) > len(pair.rejected[0].content) for pair in pairs(config))


def test_a_judge_that_always_takes_the_first_answer_says_nothing(campaign: Any, endpoint: Endpoint) -> None:
    config = judged(campaign, endpoint, lambda question: "[[A]]")
    run(config)
    assert pairs(config) == [] and report(config)["ties"] == 6


def test_a_reply_without_a_verdict_is_counted_and_is_no_label(campaign: Any, endpoint: Endpoint) -> None:
    config = judged(campaign, endpoint, lambda question: "I like both.")
    run(config)
    assert rankings(config) == [] and report(config)["skips"] == {"judge": 6}


@pytest.mark.parametrize("said", ["<think>[[A]], or", "[[A]]"])
def test_a_reply_that_was_cut_is_no_label(campaign: Any, endpoint: Endpoint, said: str) -> None:
    config = judged(campaign, endpoint, lambda question: said)
    endpoint.finish_reason = None if "think" in said else "length"
    run(config)
    assert rankings(config) == [] and report(config)["skips"] == {"judge": 6}


def test_a_judge_that_is_asked_otherwise_is_another_and_its_labels_are_its_own(
    campaign: Any, endpoint: Endpoint
) -> None:
    run(judged(campaign, endpoint, lambda question: "[[A]]"))
    config = judged(campaign, endpoint, prefers_longer)
    values = config.model_dump() | {"run_dir": config.run_dir, "judge_parameters": {"temperature": None}}
    run(LabelConfig(**values))
    assert len(endpoint.asked) == 24 and "temperature" not in endpoint.asked[-1]
    assert {pair.annotator for pair in pairs(config)} == {"judge:big-judge (temperature null)"}


def test_an_interrupted_judge_continues_with_the_pairs_that_are_left(campaign: Any, endpoint: Endpoint) -> None:
    config = judged(campaign, endpoint, lambda question: 400 if len(endpoint.asked) > 6 else prefers_longer(question))
    with pytest.raises(ModelError, match="400"):
        run(config)
    before = len(Store(config.store_url).judged("judge", "judge:big-judge"))
    endpoint.asked.clear()
    endpoint.reply = prefers_longer
    run(config)
    assert len(endpoint.asked) == 2 * (6 - before) and len(pairs(config)) == 6


def test_a_judge_that_is_busy_is_asked_again(campaign: Any, endpoint: Endpoint) -> None:
    busy = iter([429, 503])
    config = judged(campaign, endpoint, lambda question: next(busy, None) or prefers_longer(question))
    run(config)
    assert len(pairs(config)) == 6


def test_a_refused_key_names_the_variable_that_holds_it(campaign: Any, endpoint: Endpoint) -> None:
    with pytest.raises(ModelError, match=r"401.*OPENAI_API_KEY"):
        run(judged(campaign, endpoint, lambda question: 401))


def test_a_judge_that_is_not_there_is_a_clear_error(campaign: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trueup.judging.endpoint.RETRIES_AFTER_S", ())
    config = campaign.label(source="judge", judge_url="http://127.0.0.1:9/v1", judge_model="m")
    with pytest.raises(ModelError, match=r"127.0.0.1:9/v1/chat/completions: no answer"):
        run(config)


def test_the_prompt_reaches_the_judge_whole(campaign: Any, endpoint: Endpoint, answers_to: AnswersTo) -> None:
    row = answers_to("And then?", ["One.", "Two."])
    turns = [Message(role="system", content="Be brief."), *row.prompt]
    campaign.sampled([row.model_copy(update={"prompt": turns})], seed=1)
    run(judged(campaign, endpoint, prefers_longer))
    assert "system: Be brief.\n\nuser: And then?" in endpoint.asked[0]["messages"][-1]["content"]


@pytest.mark.parametrize("name", ["a?b", "50%", "%41%2f", "a#b", 'it\'s "so"', "a&b=c;d", "a:b@c", "[x] ü ?mode=ro"])
def test_the_store_lies_in_the_run_whatever_the_run_is_called(campaign: Any, tmp_path: Path, name: str) -> None:
    config = campaign.label(source="simulated").model_copy(update={"run_dir": tmp_path / "runs" / name})
    store = Store(config.store_url)
    store.set_note("said", "here")
    store.close()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]
    assert (tmp_path / "runs" / name / "labels" / "labels.sqlite").is_file()
    again = Store(config.store_url)
    assert again.note("said") == "here"
    again.close()
