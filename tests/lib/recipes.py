"""The recipes of configs/recipes that are named after systems of the field, and one overlay that scales each down."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trueup.campaign import Campaign, resolve
from trueup.config import read_yaml

FOLDER = Path(__file__).parents[2] / "configs" / "recipes"
NAMES = "instructgpt chatgpt alpaca vicuna openassistant dolly llama-lora mistral-qlora constitutional smollm2".split()
ROWS = 64
Rows = list[dict[str, Any]]


def file_of(name: str) -> Path:
    return FOLDER / f"{name}.yaml"


# ---- Rows in the shape of each data set -------------------------------------------------------------------------


def asked(n: int) -> str:
    return f"Name fruit {n}."


def turns(n: int, said: str = "A plum") -> Rows:
    """A dialogue of two exchanges."""
    texts = [asked(n), f"{said} {n}.", "Another?", f"A pear {n}."]
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def preferred(n: int) -> dict[str, Any]:
    """As ultrafeedback_binarized and cai-conversation-harmless have it."""
    ask = {"role": "user", "content": asked(n)}
    answers = {
        key: [ask, {"role": "assistant", "content": text}]
        for key, text in (("chosen", f"A plum {n}."), ("rejected", f"No {n}."))
    }
    scores = {"score_chosen": 8.0, "score_rejected": 4.0}
    return {"prompt": asked(n), "prompt_id": str(n), **answers, "messages": answers["chosen"], **scores}


def tree(n: int) -> Rows:
    """As OASST1 has it: a row for each message of a tree."""
    tree_of = {"message_tree_id": f"t{n}", "tree_state": "ready_for_export", "deleted": False, "review_result": True}
    question: dict[str, Any] = {
        "message_id": f"q{n}",
        "parent_id": None,
        "text": asked(n),
        "role": "prompter",
        "rank": None,
    }
    replies: Rows = [
        {"message_id": f"a{n}.{i}", "parent_id": f"q{n}", "text": f"{what} {n}.", "role": "assistant", "rank": i}
        for i, what in enumerate(("A plum", "A pear", "No"))
    ]
    beside = {
        "user_id": "u",
        "created_date": "2023-02-05T14:23:50.983374+00:00",
        "lang": "en",
        "review_count": 3,
        "synthetic": False,
        "model_name": None,
        "detoxify": {"toxicity": 0.0004, "insult": 0.0001} if n % 2 else None,
        "emojis": {"name": ["+1"], "count": [10]},
        "labels": {"name": ["spam", "quality"], "value": [0.0, 0.75], "count": [3, 3]},
    }
    return [{**message, **tree_of, **beside} for message in (question, *replies)]


def instructed(n: int) -> dict[str, Any]:
    return {"instruction": asked(n), "input": "" if n % 3 else "In brief.", "output": f"A plum {n}."}


OF_A_ROW: dict[str, Callable[[int], Any]] = {
    "tatsu-lab/alpaca": lambda n: {**instructed(n), "text": "..."},
    "sahil2801/CodeAlpaca-20k": instructed,
    "databricks/databricks-dolly-15k": lambda n: {
        "instruction": asked(n),
        "context": "" if n % 3 else "In brief.",
        "response": f"A plum {n}.",
        "category": ("open_qa", "brainstorming")[n % 2],
    },
    "timdettmers/openassistant-guanaco": lambda n: {"text": f"### Human: {asked(n)}### Assistant: A plum {n}."},
    "HuggingFaceH4/ultrachat_200k": lambda n: {"prompt": asked(n), "prompt_id": str(n), "messages": turns(n)},
    "HuggingFaceH4/cai-conversation-harmless": lambda n: {"messages": turns(n, "A fig")},
    "HuggingFaceTB/smol-smoltalk": lambda n: {"messages": turns(n), "source": "smol"},
    "HuggingFaceH4/ultrafeedback_binarized": preferred,
    "OpenAssistant/oasst1": tree,
    "data/constitutional": preferred,
    "data/sharegpt.json": lambda n: {
        "id": str(n),
        "conversations": [
            {"from": {"user": "human", "assistant": "gpt"}[turn["role"]], "value": turn["content"]} for turn in turns(n)
        ],
    },
    "openai/gsm8k": lambda n: {"question": asked(n), "answer": f"One and one.\n#### {n}"},
    "data/demonstrations.jsonl": lambda n: {"prompt": asked(n), "completion": f"A plum {n}."},
    "data/prompts.jsonl": lambda n: {"prompt": asked(n)},
    "data/rankings.jsonl": lambda n: {
        "prompt": asked(n),
        "completions": [f"A plum {n}.", f"A pear {n}.", f"A fig {n}.", "No."],
        "tiers": [[0], [1], [2], [3]],
    },
}
"""A row of each data set that a recipe reads, by its number. Of a tree, the rows of its messages."""


def rows_of(data: str) -> Rows:
    made = [OF_A_ROW[data](n) for n in range(ROWS)]
    return [row for one in made for row in one] if isinstance(made[0], list) else made


# ---- The overlay ------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = {"max_steps": 2, "max_length": 256, "train_batch_size": 4}
SCALED: dict[str, dict[str, Any]] = {
    "split": {"heldout_fraction": 0.25},
    "sft": SMALL,
    "sample": {"max_prompts": 24, "num_candidates": 2, "max_new_tokens": 8},
    "reward": SMALL,
    "align": {**SMALL, "keep_steps": 0},
}
ONLINE = {
    "rollout_batch_size": 8,
    "max_new_tokens": 8,
    "eval_prompts": 0,
    "on_failed_reward_model": "use",  # two steps teach it nothing
}


def scaled_down(name: str, base: Path, folder: Path, write: Callable[[Path, Rows], Path]) -> Campaign:
    """A recipe on a tiny model and 64 rows of each data set's own shape."""
    values = read_yaml(file_of(name))

    def replaced(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: replaced(one) for key, one in value.items()}
        if isinstance(value, list):
            return [replaced(one) for one in value]
        data = value.partition("?")[0] if isinstance(value, str) else ""
        return str(write(folder / f"{data.replace('/', '_')}.jsonl", rows_of(data))) if data in OF_A_ROW else value

    values = replaced(values)
    values["run_dir"] = str(folder / "run")
    for model in (values["model"], (values.get("reward") or {}).get("base", {})):
        model |= {"name": str(base), "device": "cpu"}
        model.pop("load_in_4bit", None)
    for section, keys in SCALED.items():
        values[section] = {**(values.get(section) or {}), **keys}
    if values["align"].get("algorithm") == "ppo":
        values["align"] |= ONLINE
    values["align"].get("trainer_args", {}).pop("optim", None)  # paged, on a GPU alone
    values.setdefault("label", {})
    if values["label"].get("source") != "import":
        values["label"] = {"source": "simulated"}  # in place of people
    values.pop("compare", None)  # the published model, which is not here
    return resolve(file_of(name), values)
