"""A reward model on a file from elsewhere: what each answer scores, and how often the better one scores higher."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from reward.elsewhere import answers_of
from trueup.cli import command_first, make_parser
from trueup.cli import main as trueup
from trueup.data.formats import ImportedRanking
from trueup.data.records import Candidate, Message
from trueup.models.config import ModelConfig
from trueup.models.loading import load_reward_model
from trueup.models.scoring import score_answers

PAIRS = [
    ("What is tea?", "It is a drink of leaves.", "No.", "easy"),
    ("What is milk?", "White.", "It is milk, I say, and it is milk.", "hard"),
    ("What is milk?", "White.", "Milk.", "hard"),
    ("Who are you?", "I am a model.", "I am a man of words.", "hard"),
    ("Where is red?", "In wine.", "Red red red.", "easy"),
]


def say(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


FORMATS: dict[str, Callable[[str, str, str, str], dict[str, Any]]] = {
    "RewardBench": lambda prompt, chosen, rejected, subset: {
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "subset": subset,
        "chosen_model": "a",
        "rejected_model": "b",
        "id": 1,
    },
    "messages, the prompt in both": lambda prompt, chosen, rejected, subset: {
        "chosen": [say("user", prompt), say("assistant", chosen)],
        "rejected": [say("user", prompt), say("assistant", rejected)],
        "category": subset,
    },
    "messages, the prompt apart": lambda prompt, chosen, rejected, subset: {
        "prompt": [say("user", prompt)],
        "chosen": [say("assistant", chosen)],
        "rejected": [say("assistant", rejected)],
        "category": subset,
    },
    "a ranking": lambda prompt, chosen, rejected, subset: {
        "prompt": prompt,
        "completions": [rejected, chosen],
        "tiers": [[1], [0]],
        "category": subset,
    },
}


@pytest.fixture(scope="module")
def run_dir(policies_run: Callable[..., Path], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return policies_run(tmp_path_factory.mktemp("scored") / "run", tiny_base)


@pytest.fixture(scope="module")
def model(run_dir: Path) -> Path:
    return run_dir / "reward" / "model"


@pytest.fixture(scope="module")
def scores(model: Path, tiny_base: Path) -> dict[tuple[str, str], float]:
    """Of each (prompt, answer), each read by itself."""
    loaded = load_reward_model(model, ModelConfig(name=str(tiny_base), device="cpu", dtype="float32"))
    loaded.model.eval()
    found = {}
    for prompt, *answers, _ in PAIRS:
        for text in answers:
            message, answer = [Message(role="user", content=prompt)], Candidate(text=text, token_ids=[], finished=True)
            (value,) = score_answers(loaded, [message], [answer])
            assert value is not None
            found[prompt, text] = value
    return found


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("form", FORMATS)
def test_whatever_the_columns_each_answer_has_a_line_and_the_better_one_its_rank(
    form: str,
    model: Path,
    scores: dict[tuple[str, str], float],
    jsonl: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = jsonl(tmp_path / "pairs.jsonl", [FORMATS[form](*pair) for pair in PAIRS])
    assert trueup(["reward", "score", str(model), str(file)]) == 0
    rows = lines(capsys.readouterr().out)
    by_line = {(row["where"].rpartition(":")[2], row["tier"]): row for row in rows}
    assert len(rows) == len(by_line) == 2 * len(PAIRS)
    for number, (prompt, chosen, rejected, subset) in enumerate(PAIRS, start=1):
        for tier, text in enumerate((chosen, rejected)):
            row = by_line[str(number), tier]
            assert (row["completion"], row["category"]) == (text, subset)
            assert row["score"] == pytest.approx(scores[prompt, text], abs=1e-5)


def test_accuracy_is_by_prompt_and_by_subset_beside_the_better_length_rule(
    model: Path,
    scores: dict[tuple[str, str], float],
    jsonl: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ties = [{"prompt": "Same?", "completions": ["Yes.", "No."], "tiers": [[0, 1]]}]
    file = jsonl(tmp_path / "pairs.jsonl", [*(FORMATS["a ranking"](*pair) for pair in PAIRS), *ties])
    assert trueup(["reward", "eval", str(model), str(file), "--json", str(tmp_path / "figures.json")]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())

    def accuracy(subset: str, right: Callable[[str, str, str], bool]) -> float:
        by_prompt: dict[str, list[bool]] = {}
        for prompt, chosen, rejected, of in PAIRS:
            if of.startswith(subset):
                by_prompt.setdefault(prompt, []).append(right(prompt, chosen, rejected))
        return sum(sum(each) / len(each) for each in by_prompt.values()) / len(by_prompt)

    def scores_higher(prompt: str, chosen: str, rejected: str) -> bool:
        return scores[prompt, chosen] > scores[prompt, rejected]

    assert figures["accuracy"]["value"] == pytest.approx(accuracy("", scores_higher))
    assert (figures["accuracy"]["n"], figures["accuracy"]["prompts"], figures["ties"]) == (5, 4, 1)
    assert {name: share["value"] for name, share in figures["by_category"].items()} == {
        name: pytest.approx(accuracy(name, scores_higher)) for name in ("easy", "hard")
    }
    assert figures["length_rule"] == "shorter", "three of the four prompts prefer fewer words"
    assert figures["by_length_rule"]["value"] == pytest.approx((0 + (1 + 0.5) / 2 + 1 + 1) / 4), (
        "by prompt, half for a tie"
    )
    said = capsys.readouterr().out
    assert f"{figures['accuracy']['value']:.0%} [" in said and "hard (3 pairs, 2 prompts)" in said
    assert "ties         1 rows prefer no answer" in said


def test_a_bad_row_is_refused_by_its_line_or_left_out_and_counted(
    model: Path, jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [FORMATS["RewardBench"](*pair) for pair in PAIRS]
    file = jsonl(tmp_path / "pairs.jsonl", [*rows, {"prompt": "Why?", "chosen": "So.", "rejected": 3}])
    assert trueup(["reward", "eval", str(model), str(file)]) == 2
    assert f"{file}:6: rejected: " in capsys.readouterr().err
    assert trueup(["reward", "eval", str(model), str(file), "--on-bad-rows", "drop"]) == 0
    assert "dropped      1 bad row: rejected" in capsys.readouterr().out


def test_an_answer_that_the_model_cannot_read_makes_its_row_a_bad_one(
    model: Path, jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [FORMATS["RewardBench"](*pair) for pair in PAIRS[:2]]
    file = jsonl(tmp_path / "pairs.jsonl", [*rows, {**rows[0], "chosen": "tea " * 400}])
    assert trueup(["reward", "score", str(model), str(file)]) == 2
    assert f"{file}:3: the reward model cannot read an answer" in capsys.readouterr().err
    assert trueup(["reward", "score", str(model), str(file), "--on-bad-rows", "drop"]) == 0
    found = capsys.readouterr()
    assert len(lines(found.out)) == 4 and "left out: 1 bad row: the reward model cannot read an answer" in found.err


def test_what_cannot_be_done_is_said_before_a_model_is_loaded(
    model: Path, run_dir: Path, jsonl: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = jsonl(tmp_path / "pairs.jsonl", [FORMATS["RewardBench"](*PAIRS[0])])
    there = jsonl(tmp_path / "there.jsonl", [])
    for command, flag in (("score", "--to"), ("eval", "--json")):
        assert trueup(["reward", command, str(tmp_path / "no_model"), str(file), flag, str(there)]) == 2
        assert "there.jsonl: is there already; nothing was done" in capsys.readouterr().err
    assert trueup(["reward", "eval", str(run_dir / "sft" / "model"), str(file)]) == 2
    assert "name a sequence-classification model with one output" in capsys.readouterr().err
    assert trueup(["reward", "eval", str(model), str(file), "--set", "dytpe=float32"]) == 2
    assert "dytpe: unknown key; did you mean dtype?" in capsys.readouterr().err


def test_an_answer_is_read_by_its_recorded_tokens_unless_they_hold_reasoning_too() -> None:
    row = ImportedRanking(
        where="a:1",
        prompt=[Message(role="user", content="Why?")],
        completions=["So.", "No."],
        completion_token_ids=[[5, 6], [7, 8]],
        finished=[True, False],
        reasonings=["", "<think>Well</think>"],
        tiers=[[0], [1]],
        annotator="a",
    )
    first, second = answers_of(row)
    assert (first.token_ids, first.finished) == ([5, 6], True)
    assert (second.text, second.token_ids, second.finished) == ("No.", [], False)


def test_the_stage_is_still_the_command_whose_first_word_is_a_campaign_file() -> None:
    stage = make_parser().parse_args(command_first(["reward", "score.yaml", "--force"]))
    assert (stage.name, stage.config, stage.force) == ("reward", Path("score.yaml"), True)
