"""What an answer is paid: by whom, how much in the sum, and which reward model may not pay at all."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from rlhf.align.config import ALGORITHMS
from rlhf.align.config.online import PPOConfig
from rlhf.align.config.paid import PaidConfig
from rlhf.align.rewards import (
    INSTEAD,
    ModelRewards,
    Scorer,
    WeightedRewards,
    load_function,
    make_rewards,
    refuse_unfit,
)
from rlhf.checks import load_check
from trueup import runs
from trueup.config import SplitConfig, StageConfig
from trueup.data.records import Candidate, Message
from trueup.data.rubric import RUBRICS
from trueup.errors import DataError, RunError
from trueup.models.chat import answer_text
from trueup.models.config import ModelConfig
from trueup.stages import load_object

EOS = 0
PROMPTS = [[{"role": "user", "content": text}] for text in ("Why do ships float?", "Why does ice float?")]


def answers(*texts: str) -> list[list[dict[str, str]]]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def config(tmp_path: Path, **keys: Any) -> PPOConfig:
    keys = {"missing_eos_penalty": 0.0, **keys}
    return PPOConfig(run_dir=tmp_path, model=ModelConfig(), split=SplitConfig(), **keys)


def paid(rewards: WeightedRewards, *texts: str, **columns: Any) -> list[float | None]:
    """What answers to the first of the prompts are paid, called as TRL calls it."""
    return rewards(prompts=PROMPTS[: len(texts)], completions=answers(*texts), **columns)


def pays(*rewards: float | None) -> Scorer:
    """A reward model that says this of two answers."""
    return lambda prompts, answers: ModelRewards([*rewards], None)


@pytest.fixture
def function(tmp_path: Path) -> Callable[[str], Any]:
    """Writes mine.py with the given text, and gives the name of its function f."""

    def write(text: str) -> str:
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return f"{tmp_path}/mine.py:f"

    return write


# ---- The sum ----------------------------------------------------------------------------------------------------


def test_an_answer_is_paid_the_weighted_sum_of_those_that_have_an_opinion_of_it() -> None:
    rewards = WeightedRewards(
        {"length": lambda completions, **_: [1.0, 2.0, None, None], "style": lambda **_: [10.0, None, 30.0, None]},
        {"length": 2.0, "style": -0.5},
    )
    four = answers("a", "b", "c", "d")
    assert rewards(prompts=PROMPTS * 2, completions=four) == [2.0 - 5.0, 4.0, -15.0, None]
    assert rewards.parts["length"][:2] == [1.0, 2.0] and math.isnan(rewards.parts["length"][2])
    assert rewards.totals[:3] == [-3.0, 4.0, -15.0] and math.isnan(rewards.totals[3])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([1.0], "gave 1 rewards for 2 answers; one each is wanted"),
        ([1.0, 2.0, 3.0], "gave 3 rewards for 2 answers; one each is wanted"),
        (None, "gave None; a list is wanted, a number or None for each answer"),
        (0.5, "gave 0.5; a list is wanted, a number or None for each answer"),
        ([1.0, math.nan], "gave nan; a finite number is wanted, or None for no opinion"),
        ([math.inf, 1.0], "gave inf; a finite number is wanted, or None for no opinion"),
        ([1.0, "good"], "gave 'good'; a finite number is wanted, or None for no opinion"),
        ([1.0, [2.0]], "gave [2.0]; a finite number is wanted, or None for no opinion"),
    ],
)
def test_what_is_no_number_for_each_answer_is_an_error_that_names_the_function(given: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        paid(WeightedRewards({"mine.py:f": lambda **_: given}, {"mine.py:f": 1.0}), "a", "b")
    assert str(caught.value) == f"rewards.mine.py:f: {said}"


def test_numbers_of_numpy_and_truth_values_are_numbers() -> None:
    for given in (np.array([0.5, 1.0], dtype=np.float32), [np.int64(1), True], (x for x in (1, 0))):
        rewards = WeightedRewards({"f": lambda given=given, **_: given}, {"f": 1.0})
        assert all(type(value) is float for value in paid(rewards, "a", "b"))


def test_a_reward_reads_an_answer_as_it_stands_like_whoever_labels_it() -> None:
    seen: list[str] = []

    def remember(completions: Any, **_: Any) -> list[float]:
        seen.extend(said[-1]["content"] for said in completions)
        return [0.0] * len(completions)

    paid(WeightedRewards({"f": remember}, {"f": 1.0}), "    return x\n", "So it is.")
    assert seen == ["    return x\n", "So it is."]


def test_a_reward_reads_the_special_tokens_that_people_are_shown_and_trl_leaves_out(bases: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(bases("chatml"))
    ids = [*tokenizer("a")["input_ids"], tokenizer.bos_token_id, *tokenizer("b")["input_ids"], tokenizer.eos_token_id]
    seen: list[str] = []

    def reads(completions: list[Any], **_: Any) -> list[float]:
        seen.extend(said[-1]["content"] for said in completions)
        return [0.0] * len(completions)

    rewards = WeightedRewards({"f": reads}, {"f": 1.0}, text_of=partial(answer_text, tokenizer))
    from_trl = [[{"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}]] * 2
    rewards(prompts=PROMPTS, completions=from_trl, completion_ids=[ids, ids[:-2]])
    assert seen == ["a<|im_start|>b", "a<|im_start|>"]


def test_an_answer_that_did_not_end_is_paid_less_by_the_penalty_and_stays_unpaid_without_an_opinion(
    tmp_path: Path,
) -> None:
    rewards = make_rewards(config(tmp_path, missing_eos_penalty=0.75), pays(2.0, 2.0), [], [EOS])
    assert paid(rewards, "a", "b", completion_ids=[[5, EOS], [5, 6]]) == [2.0, 1.25]
    assert rewards.parts == {"reward_model": [2.0, 2.0]}, "what the functions said is kept as they said it"
    assert paid(rewards, "a", "b", completion_ids=[[EOS], []]) == [2.0, 1.25]
    silent = WeightedRewards({"f": lambda **_: [None]}, {"f": 1.0}, [EOS], 0.75)
    assert paid(silent, "a", completion_ids=[[5]]) == [None]


# ---- Functions of one's own -------------------------------------------------------------------------------------


def test_a_function_is_called_with_prompts_completions_and_columns_as_trl_does(function: Any, tmp_path: Path) -> None:
    name = function(
        "def f(prompts, completions, category, **columns):\n"
        "    assert prompts[0][-1]['role'] == 'user' and completions[0][0]['role'] == 'assistant'\n"
        "    return [len(ids) + len(c[0]['content']) if kind == 'x' else None\n"
        "            for c, kind, ids in zip(completions, category, columns['completion_ids'])]\n"
    )
    rewards = make_rewards(config(tmp_path, rewards={name: 0.5}), None, [], [EOS])
    columns = {"category": ["x", "y"], "completion_ids": [[5, 6, EOS], [7]], "trainer_state": object()}
    assert paid(rewards, "four", "five", **columns) == [3.5, None]
    assert rewards.parts["mine.py:f"][0] == 7.0, "its folder says nothing to who reads a report"


def test_a_file_may_hold_dataclasses_and_several_functions(function: Any, tmp_path: Path) -> None:
    name = function(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n@dataclass\nclass Rule:\n"
        "    weight: float\n\nrule = Rule(2.0)\ndef f(completions, **columns):\n"
        "    return [rule.weight for _ in completions]\n"
        "def g(completions, **columns):\n    return [1] * len(completions)\n"
    )
    both = {name: 1.0, name.replace(":f", ":g"): 10.0}
    assert paid(make_rewards(config(tmp_path, rewards=both), None, [], [EOS]), "a") == [12.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def g(**columns): ...\n", "{file} has no function f"),
        ("f = 3\n", "{file} has no function f"),
        (
            "def f(prompts, completions):\n    return []\n",
            "takes no **columns; (prompts, completions, **columns) is how it is called",
        ),
        ("import math\n\nx = math.sqroot(2)\n", "{file}:3: AttributeError: module 'math' has no attribute 'sqroot'"),
        ("import nowhere_to_be_found\n", "{file}:1: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("def f(:\n", "{file}:1: SyntaxError: invalid syntax (mine.py, line 1)"),
    ],
)
def test_a_function_that_cannot_be_called_is_an_error_with_file_and_line(
    function: Any, tmp_path: Path, text: str, said: str
) -> None:
    name = function(text)
    with pytest.raises(DataError) as caught:
        load_function(name)
    assert str(caught.value) == f"rewards.{name}: {said.format(file=tmp_path / 'mine.py')}"


def test_what_a_function_raises_is_an_error_with_file_and_line(function: Any, tmp_path: Path) -> None:
    text = (
        "import json\n\ndef f(completions, **_):\n    return [json.loads(one[-1]['content']) for one in completions]\n"
    )
    rewards = make_rewards(config(tmp_path, rewards={function(text): 1.0}), None, [], [EOS])
    assert paid(rewards, "3") == [3.0]
    with pytest.raises(DataError) as caught:
        paid(rewards, "red")
    assert str(caught.value).startswith(
        f"rewards.mine.py:f: {tmp_path / 'mine.py'}:4: JSONDecodeError: Expecting value"
    )


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        make_rewards(config(tmp_path, rewards={f"{tmp_path}/none.py:f": 1.0}), None, [], [EOS])
    assert str(caught.value) == f"rewards.{tmp_path}/none.py:f: {tmp_path}/none.py: no such file"


# ---- Built in ---------------------------------------------------------------------------------------------------


def test_the_rubric_pays_what_it_says_of_an_answer_ended_or_not(tmp_path: Path) -> None:
    rewards = make_rewards(config(tmp_path, rewards={"rubric": 1.0}, rubric="says-why"), None, [], [EOS])
    good, poor = "Ships float because they push water aside.", "- float\n- float"
    rubric = RUBRICS["says-why"]
    for text in (good, poor):
        prompt = [Message(role="user", content="Why do ships float?")]
        (ended,) = paid(rewards, text, completion_ids=[[5, 6, EOS]])
        (cut,) = paid(rewards, text, completion_ids=[[5, EOS, 6]])
        assert (ended, cut) == (rubric.score(prompt, text, True), rubric.score(prompt, text, False))
    assert paid(rewards, good, completion_ids=[[5, EOS]]) != paid(rewards, good, completion_ids=[[5, 6]])
    assert paid(rewards, "", completion_ids=[[]]) == [rubric.score(prompt, "", False)]


def test_the_reward_model_is_given_each_answer_whole_its_text_its_tokens_and_whether_it_ended(tmp_path: Path) -> None:
    asked: list[tuple[str, Candidate]] = []

    def scorer(prompts: Any, answers: Any) -> ModelRewards:
        asked.extend(zip((prompt[-1].content for prompt in prompts), answers, strict=True))
        return ModelRewards([11.0, None], None)

    rewards = make_rewards(config(tmp_path), scorer, [], [EOS])
    assert paid(rewards, "a", "b", completion_ids=[[5, 6, EOS], [7]], category=[None, None]) == [11.0, None]
    assert asked == [
        ("Why do ships float?", Candidate(text="a", token_ids=[5, 6, EOS], finished=True)),
        ("Why does ice float?", Candidate(text="b", token_ids=[7], finished=False)),
    ]


@pytest.fixture
def checked(tmp_path: Path, jsonl: Callable[..., Path]) -> WeightedRewards:
    """Rewards over three checks, in an order in which neither kind comes first by itself."""
    numbers = [{"question": f"What is {n} and 1?", "answer": f"#### {n + 1}"} for n in (1, 2)]
    more = [{"question": "What is 20 and 1?", "answer": "#### 21"}]
    comma = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rhyme = {"instruction_id_list": ["style:rhymes"], "kwargs": [{}]}
    files = {
        "numbers.jsonl": ("gsm8k", numbers),
        "told.jsonl": ("ifeval", [{"prompt": "No commas.", **comma}, {"prompt": "Rhyme.", **rhyme}]),
        "more.jsonl": ("gsm8k", more),
    }
    checks = [{"kind": kind, "path": str(jsonl(tmp_path / name, rows))} for name, (kind, rows) in files.items()]
    made = config(tmp_path, rewards={"gsm8k": 1.0, "ifeval": 1.0}, checks=checks)
    return make_rewards(made, None, [load_check(check.kind, check.path) for check in made.checks], [EOS])


@pytest.mark.parametrize(
    ("check", "row", "text", "gsm8k", "ifeval"),
    [
        (0, 0, "It is 2.", 1.0, None),
        (0, 1, "It is 2.", 0.0, None),
        (0, 1, "It is 3.", 1.0, None),
        (2, 0, "It is 21.", 1.0, None),
        (2, 0, "It is 2.", 0.0, None),
        (1, 0, "One two.", None, 1.0),
        (1, 0, "One, two.", None, 0.0),
        (1, 1, "One, two.", None, None),
        (-1, -1, "It is 2.", None, None),
    ],
)
def test_an_answer_is_verified_by_the_row_that_asked_and_by_no_other(
    checked: WeightedRewards, check: int, row: int, text: str, gsm8k: float | None, ifeval: float | None
) -> None:
    (total,) = paid(checked, text, check=[check], check_row=[row])
    parts = {name: None if math.isnan(values[0]) else values[0] for name, values in checked.parts.items()}
    assert parts == {"gsm8k": gsm8k, "ifeval": ifeval}
    assert total == (gsm8k if ifeval is None else ifeval)


# ---- A reward model that is unfit -------------------------------------------------------------------------------

FILES = {"model/tokenizer.json": "t", "model/chat_template.jinja": "c", "model/model.safetensors": "w"}


def make(made: StageConfig, files: dict[str, str], level: Any = None, message: str = "") -> None:
    stage = runs.begin(made)
    for name, text in files.items():
        (stage.dir / name).parent.mkdir(exist_ok=True)
        (stage.dir / name).write_text(text)
    if level:
        stage.find("info", "accuracy", "accuracy 57 %")
        stage.find(level, "weak", message)
    stage.finish()


@pytest.fixture
def stages(campaign: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A campaign by PPO whose policy is trained, and labelled; its reward model is the test's to make."""
    monkeypatch.setattr(runs, "_git_commit", lambda: None)
    found = campaign(tmp_path, align={"algorithm": "ppo", "rollout_batch_size": 8}).stages
    for stage in ("sft", "sample", "label"):
        make(found[stage], FILES)
    return found


def refusal(align: Any) -> str:
    with pytest.raises(RunError) as caught:
        refuse_unfit(align)
    return str(caught.value)


def test_a_reward_model_of_this_policy_is_fit_with_a_warning_too(stages: dict[str, Any]) -> None:
    make(stages["reward"], FILES)
    refuse_unfit(stages["align"])
    make(stages["reward"], FILES, "warn", "a ruler does as well")
    refuse_unfit(stages["align"])


def test_a_reward_model_whose_own_verdict_is_fail_is_refused_with_what_failed(
    stages: dict[str, Any], tmp_path: Path
) -> None:
    make(stages["reward"], FILES, "fail", "no better than chance")
    assert refusal(stages["align"]) == (
        f"{tmp_path}/run/reward: the reward stage's own verdict is fail (no better than chance), and a policy would "
        f"learn its mistakes: {INSTEAD}"
    )


@pytest.mark.parametrize("algorithm", [name for name, schema in ALGORITHMS.items() if issubclass(schema, PaidConfig)])
def test_a_failed_reward_model_stops_each_algorithm_that_it_pays_before_anything_is_loaded_or_cleared_away(
    campaign: Callable[..., Any], stages: dict[str, Any], tmp_path: Path, algorithm: str
) -> None:
    make(stages["reward"], FILES, "fail", "no better than chance")
    make(stages["align"], FILES)
    keys = {"rollout_batch_size": 8 if algorithm != "best_of_n" else None}
    found = campaign(tmp_path, align={"algorithm": algorithm, **keys})
    with pytest.raises(RunError, match="verdict is fail"):
        load_object(found.stages["align"].run)(found.stages["align"])
    assert (runs.open_stage(found.run_dir, "align").dir / "model/model.safetensors").read_text() == "w"


def test_a_failed_reward_model_is_used_where_the_config_says_so_and_the_verdict_tells(stages: dict[str, Any]) -> None:
    make(stages["reward"], FILES)
    using = stages["align"].model_copy(update={"on_failed_reward_model": "use"})
    assert refuse_unfit(using) == []
    make(stages["reward"], FILES, "fail", "no better than chance")
    (finding,) = refuse_unfit(using)
    assert (finding.level, finding.code) == ("warn", "failed_reward_model")
    assert "no better than chance" in finding.message
    assert using.identity()["on_failed_reward_model"] == "use", "the manifest keeps who let it pass"


def test_to_use_a_reward_model_that_does_not_pay_is_a_problem_of_the_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="on_failed_reward_model: use has no meaning, since no reward model pays"):
        config(tmp_path, rewards={"rubric": 1.0}, on_failed_reward_model="use")


def test_a_reward_model_that_does_not_pay_may_be_as_it_is(stages: dict[str, Any]) -> None:
    make(stages["reward"], FILES, "fail", "no better than chance")
    refuse_unfit(stages["align"].model_copy(update={"rewards": {"rubric": 1.0}}))


def test_a_reward_model_of_another_sft_policy_is_refused(stages: dict[str, Any], tmp_path: Path) -> None:
    make(stages["reward"], FILES)
    make(stages["sft"], {**FILES, "model/model.safetensors": "other weights"})
    assert refusal(stages["align"]) == (
        f"{tmp_path}/run/reward: made from another SFT policy than {tmp_path}/run/sft, whose answers it never learnt "
        "to judge: run `trueup reward CONFIG` again"
    )
