"""An answer's recorded tokens are a cache of its text: in stages, in labels that travel, in exports."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import reward.train
import ui.label.run
from trueup import runs
from trueup.data.records import (
    Candidate,
    CandidateSet,
    Dropped,
    Message,
    Preference,
    Ranking,
    prompt_id,
    read_rows,
    write_rows,
)
from trueup.errors import DataError
from trueup.exporting.export import export
from trueup.models import loading
from trueup.models.chat import completion_text, encode_completion
from trueup.models.config import ModelConfig
from trueup.training.pairs import encode_pairs
from ui.labels.exchange import export_labels

SECRET = "Erna Meier"


def until_labels(made: Any) -> None:
    """The base model stands for the SFT policy; its answers are the same two to every prompt, one names somebody."""
    stage = runs.begin(made.stages["sft"])
    loaded = loading.load_base(made.config.model)
    loading.save(loaded, stage.dir / "model")
    stage.finish()
    tokenizer, rows = loaded.tokenizer, []
    for i in range(24):
        prompt = [Message(role="user", content=f"Question {i}: tea or milk?")]
        texts = [f" {SECRET} says: tea {i}, because it is warm.\n", f"Milk {i}, as {SECRET} says"]
        candidates = [
            Candidate(text=text, token_ids=encode_completion(tokenizer, text, n == 0), finished=n == 0, logp=-1.0)
            for n, text in enumerate(texts)
        ]
        values = {"prompt_id": prompt_id(prompt), "prompt": prompt, "split": "train", "candidates": candidates}
        rows.append(CandidateSet(**values, sampler={"policy_sha256": runs.open_stage(made.run_dir, "sft").sha256}))
    sampled = runs.begin(made.stages["sample"])
    write_rows(sampled.dir / "candidates.jsonl", rows)
    sampled.finish()


@pytest.fixture
def labelled(campaign: Callable[..., Any], tmp_path: Path) -> Any:
    """A run with simulated labels of sampled answers, and the file of its exported labels."""
    (tmp_path / "first").mkdir()
    made = campaign(tmp_path / "first", label={"source": "simulated"}, reward={"max_steps": 2})
    until_labels(made)
    ui.label.run.run(made.stages["label"])
    return made


def preferences(made: Any) -> list[Preference]:
    return read_rows(runs.stage_dir(made.run_dir, "label") / "preferences.jsonl", Preference)


def second(campaign: Callable[..., Any], folder: Path, file: Path, base: Path) -> Any:
    """Another campaign, whose labels are imported."""
    folder.mkdir()
    label = {"source": "import", "path": str(file)}
    made = campaign(folder, model={"name": str(base)}, label=label, reward={"max_steps": 2})
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    ui.label.run.run(made.stages["label"])
    return made


def test_labels_that_travel_to_another_base_model_are_trained_as_their_text_says(
    labelled: Any, campaign: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    before = preferences(labelled)
    assert all(row.chosen_token_ids and row.rejected_token_ids and row.chosen_logp == -1.0 for row in before)
    export_labels(labelled.stages["label"], tmp_path / "labels.jsonl")
    for base, kept in (("plain", True), ("llama", False)):
        made = second(campaign, tmp_path / base, tmp_path / "labels.jsonl", bases(base))
        rows = preferences(made)
        assert len(rows) == len(before) and {row.chosen_token_ids is not None for row in rows} == {kept}
        assert {row.chosen_logp for row in rows} == {-1.0 if kept else None}, "of those tokens, and of no others"
        found = runs.open_stage(made.run_dir, "label").manifest.verdict.findings
        said = [one.message for one in found if one.code == "tokens_left_out"]
        assert said == [] if kept else said[0].startswith("recorded tokens of 48 of 48 answers are left out: the tok")
        tokenizer = loading.load_base_tokenizer(ModelConfig(name=str(bases(base)), chat_template="plain"))
        for row, pair in zip(rows, encode_pairs(rows, tokenizer, 500, Dropped())[1], strict=True):
            for text, finished, ids in (
                (row.chosen[0].content, row.chosen_finished, pair.chosen_ids),
                (row.rejected[0].content, row.rejected_finished, pair.rejected_ids),
            ):
                assert completion_text(tokenizer, ids) == text + tokenizer.eos_token * finished
        reward.train.run(made.stages["reward"])


def test_a_text_that_was_edited_is_trained_and_exported_as_it_reads_now(
    labelled: Any, campaign: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path
) -> None:
    """A name is taken out of an exported file, and the file goes into another campaign."""
    export_labels(labelled.stages["label"], tmp_path / "labels.jsonl", rankings="whole")
    rows = [json.loads(line) for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    for row in rows[:9]:
        row["completions"] = [text.replace(SECRET, "N. N.") for text in row["completions"]]
    write_rows(tmp_path / "redacted.jsonl", rows)
    made = second(campaign, tmp_path / "second", tmp_path / "redacted.jsonl", bases("plain"))
    tokenizer = loading.load_base_tokenizer(made.config.model)

    def says(row: Ranking) -> list[str]:
        ids = [record or [] for record in row.completion_token_ids]
        return [*row.completions, *(tokenizer.decode(one) for one in ids)]

    export_labels(made.stages["label"], tmp_path / "again.jsonl", rankings="whole")
    export(made.run_dir, "preferences", tmp_path / "exported")
    for file in (tmp_path / "again.jsonl", tmp_path / "exported" / "rankings.jsonl"):
        found = read_rows(file, Ranking)
        assert sum(any(SECRET in text for text in says(row)) for row in found) == len(rows) - 9
        assert sum(row.completion_token_ids == [None, None] for row in found) == 9
    _, encoded = encode_pairs(preferences(made), tokenizer, 500, Dropped())
    trained = [tokenizer.decode(pair.chosen_ids) for pair in encoded]
    assert sum(SECRET in text for text in trained) == len(trained) - 9


def test_a_stage_that_encodes_anew_says_how_many(labelled: Any, bases: Callable[[str], Path]) -> None:
    path = runs.stage_dir(labelled.run_dir, "label") / "preferences.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows[:5]:
        row["chosen"][0]["content"] = "Tea."
    write_rows(path, rows)
    reward.train.run(labelled.stages["reward"])
    found = runs.open_stage(labelled.run_dir, "reward").manifest.verdict.findings
    said = [one.message for one in found if one.code == "texts_in_tokens"]
    assert sum(int(text.split()[0]) for text in said) == 5 and all("encoded anew" in text for text in said)


@pytest.mark.parametrize("base", ["llama", "plain"])
def test_preferences_that_spell_a_control_token_are_trained_as_text(
    campaign: Callable[..., Any], bases: Callable[[str], Path], tmp_path: Path, base: str
) -> None:
    cases = Path("tests/data/cases/rows/f_spelled.jsonl").read_text()
    file = tmp_path / "spelled.jsonl"
    file.write_text(cases.replace("<s>", "<|endoftext|>") if base == "plain" else cases)
    made = second(campaign, tmp_path / "run", file, bases(base))
    rows = preferences(made)
    tokenizer = loading.load_base_tokenizer(made.config.model)
    _, encoded = encode_pairs(rows, tokenizer, 500, Dropped())
    for row, pair in zip(rows, encoded, strict=True):
        assert tokenizer.decode(pair.chosen_ids) == row.chosen[0].content + tokenizer.eos_token
        assert [token for token in pair.chosen_ids if token in tokenizer.all_special_ids] == [tokenizer.eos_token_id]
    reward.train.run(made.stages["reward"])


def test_pairs_that_cannot_be_encoded_are_all_named_with_their_line(
    campaign: Callable[..., Any], bases: Callable[[str], Path], jsonl: Callable[..., Path], tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% if 'Tea' in messages[0]['content'] %}{{ raise_exception('No tea') }}{% endif %}"
        "{% for m in messages %}{{ m['role'] + ':' + m['content'] + (eos_token if m['role'] == 'assistant' else '') }}"
        "{% endfor %}{{ 'assistant:' if add_generation_prompt }}"
    )
    made = campaign(
        tmp_path, model={"chat_template": str(template)}, label={"source": "import", "path": "labels.jsonl"}
    )
    rows = [{"prompt": f"{'Tea' if i % 5 else 'Milk'} {i}?", "chosen": "Yes. ", "rejected": "Yes."} for i in range(40)]
    jsonl(tmp_path / "labels.jsonl", rows)
    stage = runs.begin(made.stages["sft"])
    loading.save(loading.load_base(made.config.model), stage.dir / "model")
    stage.finish()
    ui.label.run.run(made.stages["label"])
    assert len(preferences(made)) == 40, "they differ in their outer space"
    with pytest.raises(
        DataError, match=r"\d+ rows cannot be encoded\n  .*preferences\.jsonl:\d+: the chat template refuses"
    ):
        reward.train.run(made.stages["reward"])
