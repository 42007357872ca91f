"""People label round after round in one store, and each round's labels are its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from reward.config import RewardConfig
from rlhf.align.config.labelled import DPOConfig
from sft.config import SampleConfig
from trueup import runs
from trueup.campaign import why_stale
from trueup.data.records import CandidateScores, CandidateSet, Preference, Ranking, read_rows, write_rows
from trueup.errors import DataError, LabelsPending
from trueup.runs import begin
from trueup.verify import verify
from ui.label.run import prepare, run
from ui.labels.config import LabelConfig
from ui.labels.service import LabelService
from ui.labels.store import Store
from ui.labels.tables import event
from ui.labels.tasks import IdealCompletion, Judgement, Settings

OPEN = 3
"""The prompt whose answers the reward model cannot tell apart."""


@contextmanager
def labelling(config: LabelConfig) -> Iterator[LabelService]:
    store = Store(config.store_url)
    prepare(config, store)
    yield LabelService(store, Settings.of(config))
    store.close()


def label_all(config: LabelConfig) -> list[str]:
    """Label as `ann` until nothing is left; returns the questions in the order in which they came."""
    asked = []
    with labelling(config) as service:
        while tasks := service.tasks("ann"):
            asked.append(tasks[0].prompt[-1].content)
            service.label("ann", Judgement(f"{tasks[0].token}-label", tasks[0].token, "a"))
    return asked


@pytest.fixture
def second(campaign: Any, answers_to: Any) -> LabelConfig:
    """The label stage of a second round, whose answers are sampled and scored. The first round is finished."""
    label: LabelConfig = campaign.label(source="human", gold_share=0.0, repeat_share=0.0, control_share=0.0)
    label_all(label)
    run(label)
    shared = {"model": label.model, "split": label.split, "run_dir": label.run_dir}
    begin(RewardConfig(**shared)).finish()
    begin(DPOConfig(**shared)).finish()
    prompts = campaign.dir.parent / "prompts.jsonl"
    sample = begin(SampleConfig(**shared, prompts=prompts).in_round(2))
    rows = [answers_to(f"Question {i}?", [f"Now {i}.", f"Later {i}, perhaps."]) for i in range(6)]
    write_rows(sample.dir / "candidates.jsonl", rows)
    scores = [[0.0, 0.0 if i == OPEN else 9.0] for i in range(6)]
    write_rows(
        sample.dir / "candidate_scores.jsonl",
        (CandidateScores(prompt_id=row.prompt_id, scores=of) for row, of in zip(rows, scores, strict=True)),
    )
    sample.finish()
    return label.in_round(2)


def test_a_second_round_asks_about_what_the_reward_model_leaves_open_first(second: LabelConfig) -> None:
    with pytest.raises(LabelsPending, match="0 labels of people so far"):
        run(second)
    asked = label_all(second)
    assert sorted(asked) == [f"Question {i}?" for i in range(6)] and asked.index(f"Question {OPEN}?") < 2


@pytest.mark.parametrize("heads", [2, 3])
def test_of_a_reward_model_with_several_heads_it_asks_first_where_they_disagree_and_not_where_all_toss_a_coin(
    second: LabelConfig, heads: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = runs.stage_dir(second.run_dir, "sample") / "candidate_scores.jsonl"
    opinions = [[2.0] * heads] * 6  # each finds the second answer a little better, but for
    opinions[OPEN] = [0.0] * heads  # one pair that is a coin to all of them,
    opinions[1] = [9.0, *[-9.0] * (heads - 1)]  # and one of which each is sure, in its own way
    write_rows(
        path,
        (
            row.model_copy(
                update={"scores": [0.0, sum(said) / heads], "heads": [[0.0] * heads, said]},
            )
            for row, said in zip(read_rows(path, CandidateScores), opinions, strict=True)
        ),
    )
    with pytest.raises(LabelsPending):
        run(second)
    assert f"the reward model's {heads} heads disagree come first" in capsys.readouterr().out
    assert label_all(second)[0] == "Question 1?"


@pytest.mark.parametrize(
    "opinions", [[[1.0, 2.0], [1.0]], [[1.0, 2.0]], [[1.0, 2.0], None]], ids=["one less", "an answer less", "none"]
)
def test_heads_that_do_not_fit_their_scores_are_refused_with_the_line(second: LabelConfig, opinions: Any) -> None:
    path = runs.stage_dir(second.run_dir, "sample") / "candidate_scores.jsonl"
    first, *rest = read_rows(path, CandidateScores)
    write_rows(path, [first.model_copy(update={"heads": opinions}), *rest])
    with pytest.raises(DataError, match=r"candidate_scores.jsonl:[12]: heads: every answer with a score needs as many"):
        run(second)


def test_its_labels_are_behind_those_of_the_first_and_make_nothing_of_it_stale(
    second: LabelConfig, campaign: Any
) -> None:
    first = campaign.label(source="human", gold_share=0.0, repeat_share=0.0, control_share=0.0)
    assert why_stale(first) is None
    label_all(second)
    with labelling(second) as service:
        assert service.tasks("ann") == [], "the account and what it did are those of the first round"
    assert why_stale(first) is None, "labels of round 2 are no labels of round 1"
    run(second)
    assert why_stale(second) is None
    rounds = [
        [pair.round for pair in read_rows(runs.stage_dir(folder, "label") / "preferences.jsonl", Preference)]
        for folder in (first.run_dir, second.run_dir)
    ]
    assert rounds[0] == [1] * 6 and rounds[1] == [1] * 6 + [2] * 6


def test_ideal_answers_of_all_rounds_are_exported_with_their_round(second: LabelConfig, campaign: Any) -> None:
    with labelling(second) as service:
        task = service.tasks("ann")[0]
        service.demonstrate("ann", IdealCompletion("ideal-answer", task.token, "Freeze it."))
    label_all(second)
    run(second)
    folder = runs.stage_dir(second.run_dir, "label")
    assert {pair.round for pair in read_rows(folder / "ideals.jsonl", Preference)} == {2}
    assert not (runs.stage_dir(campaign.dir, "label") / "ideals.jsonl").exists()


def test_undo_reaches_back_to_the_beginning_of_the_round_and_no_further(second: LabelConfig, campaign: Any) -> None:
    first = campaign.label(source="human", gold_share=0.0, repeat_share=0.0, control_share=0.0)
    with labelling(second) as service:
        assert not service.undo("ann", "before-any").undone
        assert why_stale(first) is None
        task = service.tasks("ann")[0]
        service.label("ann", Judgement("one-label", task.token, "a"))
        assert service.undo("ann", "of-this-round").undone
    label_all(second)
    run(second)
    with labelling(second) as service:
        assert service.undo("ann", "of-the-last").undone
    assert "labels in the store" in str(why_stale(second)) and why_stale(first) is None


def test_an_ideal_answer_that_is_taken_back_trains_nothing(campaign: Any) -> None:
    label = campaign.label(source="human", gold_share=0.0, repeat_share=0.0)
    with labelling(label) as service:
        task = service.tasks("ann")[0]
        service.demonstrate("ann", IdealCompletion("ideal-answer", task.token, "Freeze it."))
    label_all(label)
    run(label)
    ideals = runs.stage_dir(label.run_dir, "label") / "ideals.jsonl"
    assert ideals.is_file() and verify(label.run_dir).problems == []
    ideals.write_text(ideals.read_text().replace("Freeze it.", "Throw it away."))
    assert why_stale(label) == "its ideals.jsonl has changed since"
    failed = label.model_copy(update={"exclude_failed_gold": True})
    with Store(label.store_url).write() as db:
        db.execute(sa.text("DROP TRIGGER event_no_delete"))
        db.execute(event.delete().where(event.c.kind == "demonstration"))
    run(failed)
    assert not ideals.exists()


def test_a_pair_that_comes_again_is_not_asked_again_and_other_pairs_are(second: LabelConfig, campaign: Any) -> None:
    """A policy that moved little, or says short things, gives the same answers in two rounds."""
    first = runs.stage_dir(campaign.dir, "sample") / "candidates.jsonl"
    again = runs.stage_dir(second.run_dir, "sample")
    rows = list(read_rows(first, CandidateSet))
    write_rows(again / "candidates.jsonl", rows)
    scores = [CandidateScores(prompt_id=row.prompt_id, scores=[0.0] * len(row.candidates)) for row in rows]
    write_rows(again / "candidate_scores.jsonl", scores)
    known = {frozenset(row.completions) for row in rankings(campaign.dir)}
    with labelling(second):
        pass
    with pytest.raises(LabelsPending, match="0 labels of people so far"):
        run(second)
    assert len(label_all(second)) == 6
    run(second)
    new = [frozenset(row.completions) for row in rankings(second.run_dir) if row.round == 2]
    assert len(new) == 6 and not known & set(new)


def test_how_a_pair_was_chosen_stays_with_its_label_when_another_round_has_its_queue(second: LabelConfig) -> None:
    label_all(second)
    run(second)
    before = {row.label_id: (row.selection, row.propensity) for row in rankings(second.run_dir)}
    assert {selection for selection, _ in before.values()} == {"random", "uncertainty"}
    with labelling(second):
        pass
    store = Store(second.store_url)
    store.ask([])
    store.close()
    again = {row.label_id: (row.selection, row.propensity) for row in Store(second.store_url).rankings(["human"])}
    assert again == before


def rankings(run_dir: Path) -> list[Ranking]:
    return list(read_rows(runs.stage_dir(run_dir, "label") / "rankings.jsonl", Ranking))


def test_rankings_of_a_further_round_come_at_random(campaign: Any) -> None:
    ranking, pairs = (campaign.label(source="human", task=task).in_round(2) for task in ("ranking", "pairs"))
    assert (ranking.selection, pairs.selection) == ("random", "uncertainty")
    assert campaign.label(source="human", selection="random").in_round(2).selection == "random"
