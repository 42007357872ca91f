"""The plan: a change makes exactly the right stages stale, and the plan says why."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trueup import runs
from trueup.campaign import Campaign, load_campaign, plan
from trueup.check import check
from trueup.config import StageConfig
from trueup.errors import ConfigError
from trueup.provenance import contents

ALL = ["sft", "sample", "label", "reward", "align", "compare"]


def make(config: StageConfig) -> None:
    """A finished stage, without its work."""
    stage = runs.begin(config)
    for path in config.input_paths():
        stage.add_input(path, rows=1)
    (stage.dir / "report.json").write_text(config.stage)
    stage.finish()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_git_commit", lambda: None)
    monkeypatch.setattr(runs, "_versions", dict)


@pytest.fixture
def done(campaign: Callable[..., Campaign], tmp_path: Path) -> Campaign:
    """A campaign of which every stage is complete."""
    made = campaign(tmp_path)
    for stage in made.needed():
        make(made.stages[stage])
    return made


def actions(campaign: Campaign, *arguments: Any) -> dict[str, str]:
    return {step.stage: f"{step.action}: {step.reason}" for step in plan(campaign, *arguments) if step.action != "keep"}


def changed(campaign: Campaign, *overrides: str) -> dict[str, str]:
    return actions(load_campaign(campaign.source, list(overrides)))


def test_a_new_campaign_runs_everything_in_order(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    steps = plan(campaign(tmp_path))
    assert [step.stage for step in steps] == ALL
    assert {(step.action, step.reason) for step in steps} == {("run", "not run yet")}


def test_nothing_is_run_again_when_nothing_changed(done: Campaign) -> None:
    assert actions(load_campaign(done.source)) == {}
    assert all(step.reason.startswith("up to date (0 s, 20") for step in plan(done))


@pytest.mark.parametrize(
    ("override", "stale", "reason", "descendants"),
    [
        (
            "sft.learning_rate=0.5",
            "sft",
            "learning_rate: 0.01 -> 0.5",
            ["sample", "label", "reward", "align", "compare"],
        ),
        ("sft.lora.r=8", "sft", "lora.r: 4 -> 8", ["sample", "label", "reward", "align", "compare"]),
        ("sample.temperature=0.7", "sample", "temperature: 1.0 -> 0.7", ["label", "reward", "align", "compare"]),
        (
            "label.store=sqlite:////another.sqlite",
            "label",
            "store: None -> 'sqlite:////another.sqlite'",
            ["reward", "align", "compare"],
        ),
        ("reward.pairs=extremes", "reward", "pairs: 'all' -> 'extremes'", ["compare"]),
        ("align.beta=0.2", "align", "beta: 'auto' -> 0.2", ["compare"]),
        ("compare.confidence=0.9", "compare", "confidence: 0.95 -> 0.9", []),
    ],
)
def test_a_changed_key_makes_its_stage_and_all_that_came_from_it_stale_and_no_other(
    done: Campaign, override: str, stale: str, reason: str, descendants: list[str]
) -> None:
    found = changed(done, override)
    assert list(found) == [stage for stage in ALL if stage in (stale, *descendants)]
    assert found[stale] == f"run: {reason}"
    assert all(found[stage].endswith(" will be new") for stage in descendants)


def test_what_people_go_by_counts_where_people_are_asked(
    done: Campaign, campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    assert changed(done, "label.guideline=Be kind") == {}, "the rubric reads no guideline"
    (tmp_path / "asked").mkdir()
    asked = campaign(tmp_path / "asked", label={"source": "human"})
    for stage in asked.needed():
        make(asked.stages[stage])
    assert list(changed(asked, "label.guideline=Be kind")) == ["label", "reward", "align", "compare"]
    assert changed(asked, "label.repeat_share=0.1") == {}, "how often a pair comes again changes no label"


def test_the_reason_names_every_parent_that_will_be_new(done: Campaign) -> None:
    assert changed(done, "sft.seed=1")["compare"] == "run: sft and sample and align and reward will be new"


def test_a_key_at_the_top_makes_every_stage_stale_that_it_reaches(done: Campaign) -> None:
    assert list(changed(done, "seed=1")) == ALL
    assert changed(done, "model.dtype=bfloat16")["sft"].startswith("run: model.dtype: ")
    assert changed(done, "name=another") == {}, "a name is no setting, and this run directory was named"


def test_a_changed_input_file_is_named_and_one_that_was_only_moved_changes_nothing(
    done: Campaign, tmp_path: Path
) -> None:
    shutil.move(tmp_path / "prompts.jsonl", tmp_path / "moved.jsonl")
    assert actions(done)["sample"] == f"run: {tmp_path}/prompts.jsonl is missing"
    assert changed(done, "sample.prompts=moved.jsonl") == {}
    with (tmp_path / "moved.jsonl").open("a") as file:
        file.write("\n")
    found = changed(done, "sample.prompts=moved.jsonl")
    assert list(found) == ["sample", "label", "reward", "align", "compare"]
    assert found["sample"] == f"run: {tmp_path}/moved.jsonl has changed"
    more = changed(done, "sample.prompts=moved.jsonl", "sft.data=[demonstrations.jsonl, moved.jsonl]")
    assert "sft" in more


# ---- What is known by name only ---------------------------------------------------------------------------------


def rewritten(path: Path) -> None:
    """Another content of the same size and date: a weight, a letter."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def by_name(campaign: Callable[..., Campaign], tmp_path: Path, tiny_base: Path) -> Campaign:
    """A complete campaign whose base, template, reward model and DeepSpeed file are local, and named in all ways."""
    for name in ("base", "scorer"):
        shutil.copytree(tiny_base, tmp_path / name)
    (tmp_path / "t.jinja").write_text("{{ messages }}")
    (tmp_path / "ds.json").write_text("{} ")
    made = campaign(
        tmp_path,
        model={"name": "./base", "chat_template": "t.jinja"},
        label={"source": "reward_model", "reward_model": "scorer"},
        align={"trainer_args": {"deepspeed": "ds.json"}},
        compare={"base": True},
    )
    for stage in ALL:
        make(made.stages[stage])
    assert actions(made) == {}
    return made


@pytest.mark.parametrize(
    ("file", "stale"),
    {
        "base/model.safetensors": {"sft": "model.name", "compare": "model.name"},
        "base/tokenizer.json": {"sft": "model.name", "compare": "model.name"},
        "base/config.json": {"sft": "model.name", "compare": "model.name"},
        "t.jinja": {"sft": "model.chat_template", "compare": "model.chat_template"},
        "scorer/model.safetensors": {"label": "reward_model"},
        "ds.json": {"align": "trainer_args.deepspeed"},
    }.items(),
    ids=str,
)
@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
def test_another_content_under_the_same_name_makes_stale_what_was_made_from_it(
    by_name: Campaign, tmp_path: Path, file: str, stale: dict[str, str], large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:  # as gigabytes of weights are: remembered by what the file system says
        monkeypatch.setattr(contents, "_REMEMBERED_BYTES", 0)
        monkeypatch.setattr(contents, "_SETTLED_SECONDS", -1e9)
        monkeypatch.setenv("TRUEUP_CACHE", str(tmp_path / "cache"))
        assert actions(by_name) == {} and (tmp_path / "cache" / "hashes.json").is_file()
        with monkeypatch.context() as still:
            still.setattr(contents, "sha256_file", lambda path: pytest.fail(f"{path} is hashed again"))
            assert actions(by_name) == {}
    rewritten(tmp_path / file)
    found = {
        stage: contents.changed(_manifest(by_name, stage)["contents"], by_name.stages[stage].contents())
        for stage in ALL
    }
    assert {stage: lines for stage, lines in found.items() if lines} == {
        stage: [f"{key}: {Path(file).name} has changed"] for stage, key in stale.items()
    }
    first = next(iter(stale))
    assert actions(by_name)[first] == f"run: {stale[first]}: {Path(file).name} has changed"


def test_files_that_come_or_go_in_a_models_folder_are_named_and_its_place_does_not_count(
    by_name: Campaign, tmp_path: Path
) -> None:
    shutil.move(tmp_path / "base", tmp_path / "elsewhere")
    assert changed(by_name, "model.name=./elsewhere") == {}, "the same model in another place"
    assert actions(by_name)["sft"].startswith("run: model.name: config.json is missing")
    (tmp_path / "elsewhere" / "chat_template.jinja").write_text("new")
    assert changed(by_name, "model.name=./elsewhere")["sft"] == "run: model.name: chat_template.jinja is new"
    (tmp_path / "elsewhere" / "README.md").write_text("of no effect")
    (tmp_path / "elsewhere" / "chat_template.jinja").unlink()
    assert changed(by_name, "model.name=./elsewhere") == {}


def test_an_interrupted_stage_does_not_go_on_from_other_weights(by_name: Campaign, tmp_path: Path) -> None:
    (by_name.run_dir / "sft/manifest.json").unlink()
    runs.begin(by_name.stages["sft"])
    assert actions(by_name)["sft"] == "resume: interrupted, continues"
    rewritten(tmp_path / "base" / "model.safetensors")
    assert actions(by_name)["sft"] == "run: unfinished"


def test_a_hub_id_without_a_revision_is_known_by_the_commit_that_was_used(
    campaign: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "models--owner--model" / "refs"
    made = campaign(tmp_path, model={"name": "owner/model"})
    stage = runs.begin(made.stages["sft"])
    stage.add_input(made.stages["sft"].input_paths()[0], rows=1)
    refs.mkdir(parents=True)
    (refs / "main").write_text("1" * 40)  # fetched by the stage itself
    stage.finish()
    assert _manifest(made, "sft")["contents"] == {"model.name": {"commit": "1" * 40}}
    assert "sft" not in actions(made)
    (refs / "main").write_text("2" * 40)
    assert actions(made)["sft"] == "run: model.name: commit has changed"


def _manifest(campaign: Campaign, stage: str) -> dict[str, Any]:
    return runs.open_stage(campaign.run_dir, stage).manifest.plain()


def test_a_parent_that_was_made_again_behind_the_campaigns_back_is_named(done: Campaign) -> None:
    (done.run_dir / "reward/manifest.json").write_text((done.run_dir / "reward/manifest.json").read_text() + "\n")
    assert actions(done) == {"compare": "run: reward has changed"}


def test_a_missing_output_is_named(done: Campaign) -> None:
    (done.run_dir / "reward/report.json").unlink()
    assert actions(done) == {"reward": "run: its report.json is missing", "compare": "run: reward will be new"}


def test_an_interrupted_stage_continues_unless_a_parent_will_be_new(done: Campaign) -> None:
    (done.run_dir / "align/manifest.json").unlink()
    assert actions(done) == {"align": "run: unfinished", "compare": "run: align has changed"}
    runs.begin(done.stages["align"])
    assert actions(done)["align"] == "resume: interrupted, continues"
    assert changed(done, "align.beta=0.2")["align"] == "run: unfinished"
    assert changed(done, "sft.seed=1")["align"] == "run: unfinished"


def test_a_stage_may_be_forced_and_the_plan_may_end_early(done: Campaign) -> None:
    assert actions(done, None, ("align",)) == {"align": "run: asked for", "compare": "run: align will be new"}
    assert [step.stage for step in plan(done, "label")] == ["sft", "sample", "label"]
    assert [step.stage for step in plan(done, "align")] == ["sft", "sample", "label", "align"]


def test_imported_labels_need_no_samples_and_a_comparison_without_a_reward_model_needs_none(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    imported = campaign(tmp_path, label={"source": "import", "path": "labels.jsonl"})
    assert imported.needed("reward") == ["sft", "label", "reward"]
    assert imported.needed("compare") == ["sft", "sample", "label", "reward", "align", "compare"]
    rubric_only = campaign(tmp_path, compare={"judges": ["rubric"]})
    assert rubric_only.needed("compare") == ["sft", "sample", "label", "align", "compare"]
    assert rubric_only.needed() == ALL, "the sequence has a reward model even so"


@pytest.mark.parametrize(
    ("label", "split", "judges"),
    [
        ({"source": "simulated"}, {}, ["rubric", "reward_model"]),
        ({"source": "human"}, {}, ["reward_model"]),
        ({"source": "human"}, {"judge_fraction": 0.3}, ["second_reward_model", "reward_model"]),
        ({"source": "import", "path": "labels.jsonl"}, {}, ["reward_model"]),
        ({"source": "judge", "judge_url": "http://127.0.0.1:1", "judge_model": "m"}, {}, ["endpoint", "reward_model"]),
    ],
)
def test_by_default_what_made_the_labels_judges(
    campaign: Callable[..., Campaign], tmp_path: Path, label: Any, split: Any, judges: list[str]
) -> None:
    compare: Any = campaign(tmp_path, label=label, split={"heldout_fraction": 0.3, **split}).stages["compare"]
    assert compare.judges == judges and compare.why_these_judges == f"label.source is {label['source']}"
    assert compare.judge_model == label.get("judge_model")
    named: Any = campaign(tmp_path, label=label, compare={"judges": ["rubric"]}).stages["compare"]
    assert named.judges == ["rubric"] and named.why_these_judges == "", "what the file names stands"


def test_a_rubric_that_is_named_once_labels_pays_and_judges(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    align = {"algorithm": "grpo", "rewards": {"rubric": 1.0}, "rollout_batch_size": 8, "max_new_tokens": 16}
    made = campaign(tmp_path, label={"source": "simulated", "rubric": "mine.py:taste"}, align=align)
    stages: Any = made.stages
    assert {stages[name].rubric for name in ("label", "align", "compare")} == {str(tmp_path / "mine.py:taste")}
    for name in ("label", "align", "compare"):
        assert tmp_path / "mine.py" in stages[name].input_paths()
        assert stages[name].identity()["rubric"] == "mine.py:taste"
    assert sum("mine.py: no such file" in problem for problem in check(made)[0]) == 3
    (tmp_path / "mine.py").write_text("def taste(prompt): return 1.0")
    assert sum("is neither a Rubric nor a function" in problem for problem in check(made)[0]) == 3
    head = "from trueup.data.rubric import Rubric\n"
    for text, problem in (
        (
            "def taste(prompt, text, finished): return 1 / len(text)",
            "rubric mine.py:taste: {file}:1: ZeroDivisionError: ",
        ),
        (
            "def taste(prompt, text, finished): return text",
            "rubric mine.py:taste: gave 'It is red, because it is.'; a ",
        ),
        (
            f"{head}taste = Rubric('t', ((1, 'long', lambda *_: {{}}['a']),))",
            "rubric mine.py:taste: {file}:2: KeyError: ",
        ),
        (f"{head}taste = Rubric('t', (1, 2))", "rubric: {file}:taste: its criteria are not (weight, what is asked, "),
    ):
        (tmp_path / "mine.py").write_text(text)
        assert sum(problem.format(file=tmp_path / "mine.py") in found for found in check(made)[0]) == 3, text


def test_where_a_rule_pays_and_judges_nobody_is_asked_for_labels(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    online = {"rollout_batch_size": 8, "eval_prompts": 2, "max_new_tokens": 16}
    align = {"algorithm": "ppo", "rewards": {"rubric": 1.0}, **online}
    keys = {"align": align, "label": {"source": "human"}}
    unlabelled = campaign(tmp_path, compare={"judges": ["rubric"]}, **keys)
    assert unlabelled.needed() == ["sft", "sample", "align", "compare"]
    assert check(unlabelled)[0] == []
    assert campaign(tmp_path, compare={"judges": ["rubric", "reward_model"]}, **keys).needed() == ALL


def test_new_labels_of_people_make_the_label_stage_stale(campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    made = campaign(tmp_path, label={"source": "human"})
    for stage in made.needed():
        make(made.stages[stage])
    assert actions(made) == {}
    _label_something(made)
    why = actions(made)
    assert why.pop("label").startswith("run: labels in the store: None -> ")
    assert why == {
        "reward": "run: label will be new",
        "align": "run: label will be new",
        "compare": "run: align and reward will be new",
    }


def _label_something(campaign: Campaign) -> None:
    from trueup.data.records import Candidate, Message
    from ui.labels.items import Item, ProgramLabel
    from ui.labels.store import Store

    config: Any = campaign.stages["label"]
    store = Store(config.store_url)
    answers: list[Any] = [Candidate(text=text, token_ids=[1], finished=True) for text in ("a", "b")]
    (item,) = store.add_items([Item([Message(role="user", content="q")], answers, None, "train", {})])
    store.put("human", "ann", [ProgramLabel(item, [[0], [1]])])
    store.close()


# ---- Several algorithms in one file -----------------------------------------------------------------------------


def test_of_several_algorithms_in_a_file_the_keys_of_the_chosen_one_count(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    made = campaign(tmp_path, align={"dpo": {"beta": 0.3}, "ppo": {"kl_coef": 0.2}, "grpo": None})
    (tmp_path / "flat").mkdir()
    flat = campaign(tmp_path / "flat", align={"beta": 0.3})
    assert made.stages["align"].identity() == flat.stages["align"].identity(), "it is no other than a flat file's"
    ppo = load_campaign(made.source, ["align.algorithm=ppo"]).stages["align"]
    assert (ppo.run, ppo.identity()["kl_coef"], "beta" in ppo.identity()) == ("rlhf.align.ppo.stage:run", 0.2, False)
    assert ppo.identity()["lora"]["r"] == 4, "what stands beside the algorithms is for all of them"
    again = load_campaign(made.source, ["align.algorithm=ppo", "align.ppo.kl_coef=0.1"]).stages["align"]
    assert again.identity()["kl_coef"] == 0.1


def test_an_algorithm_that_is_not_chosen_is_checked_all_the_same(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    made = campaign(tmp_path)
    for override, said in (
        ("align.ppo.kl_coeff=1", "align.ppo.kl_coeff: unknown key; did you mean kl_coef?"),
        ("align.ppo.gamma=2", "align.ppo.gamma: Input should be less than or equal to 1 (found 2)"),
        ("align.rloo.num_generations=3", "align.rloo: num_generations 3 does not divide rollout_batch_size 64"),
        ("align.grpo=3", "align.grpo: must be a section of keys (found 3)"),
        ("align.algorithm=pop", "align.algorithm: unknown 'pop'; did you mean ppo?"),
    ):
        with pytest.raises(ConfigError) as error:
            load_campaign(made.source, [override])
        assert str(error.value).splitlines()[1:] == [f"  {said}"]


def test_a_changed_key_of_an_algorithm_that_is_not_chosen_makes_nothing_stale(done: Campaign) -> None:
    assert changed(done, "align.ppo.kl_coef=0.2") == {}
    assert list(changed(done, "align.dpo.beta=0.2")) == ["align", "compare"]
    assert list(changed(done, "align.algorithm=ppo")) == ["align", "compare"]
    assert changed(done, "align.algorithm=ppo")["align"] == "run: algorithm: 'dpo' -> 'ppo'", (
        "and not every key of both"
    )


def test_a_key_for_all_algorithms_reaches_each_of_them_and_one_that_stands_twice_is_an_error(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    made = campaign(tmp_path, align={"train_batch_size": 16, "ppo": {"rollout_batch_size": 32}})
    ppo = load_campaign(made.source, ["align.algorithm=ppo"]).stages["align"].identity()
    assert (ppo["train_batch_size"], ppo["rollout_batch_size"]) == (16, 32)
    for override, said in (
        ("align.rollout_batch_size=64", "align.rollout_batch_size: is also in align.ppo; keep one of them"),
        ("align.max_length=2", "align.max_length: Input should be greater than or equal to 8 (found 2)"),
    ):
        with pytest.raises(ConfigError) as error:
            load_campaign(made.source, ["align.algorithm=ppo", override])
        assert str(error.value).splitlines()[1:] == [f"  {said}"]
