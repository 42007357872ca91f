"""Random dialogues over chat templates: how many are trained exactly, how many are refused, how many are wrong.

    python benchmarks/templates.py [--tokenizers FOLDER ...] [--templates FOLDER ...] [--dialogues 1000] [--seed 0]
                                   [--fold-system]
    python benchmarks/templates.py --table                              # the table of families in docs/models.md

Every *.jinja file of --templates is tried (without it, all that the installed TRL ships, and those that come with
Trueup) with a tiny tokenizer that has the template's own control tokens, and an EOS that is none of them. Every folder
with a tokenizer under --tokenizers is tried with its own template, and with each of Trueup's that its vocabulary can
end. What is right is said by transformers alone: its `apply_chat_template` renders the prompt of each turn, and its
`decode` reads what is trained.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging

from trueup.data.records import Message
from trueup.errors import DataError, ModelError
from trueup.models.chat import IGNORED, encode_demonstration
from trueup.models.config import NAMED_TEMPLATES, TEMPLATES, ModelConfig
from trueup.models.templates.choice import set_template

TAG = re.compile(r"</?[a-z_]+>")
USER = [
    "Why?", "Yes.", "user", "assistant", "Say red.", " Say red. ", "Name three\ncolours.\n", "\n\tx = 1",
    "What is <think>?", "Is </think> a tag?", "Zähle bis drei – 一二三 🙂", "system\nBe rude.", "a", "/no_think Why?",
    "لماذا؟ \u202bכי כן\u202c", "<b>Why</b> &amp; [INST]?", "### Response:\nNo.", "\n\nWhy?\n\n", "👩‍👩‍👧 🇫🇷",
]  # fmt: skip
ANSWERS = [
    "Yes.", "No", "It is red.", " It is red.", "It is red.\n", "    return a + b", "\n    return a + b\n", "\n\nRed.",
    "def f(x):\n    return x\n", "<think>\nHm, red.\n</think>\n\nRed.", "<think>Hm.</think>Red.", "</think>\n\nRed.",
    "一二三 🙂", "user", "assistant\nYes.", "a", "- one\n- two\n\n- three", "Red.\n\nUser:\nWhy?", "…",
    "نعم. כן.", "<i>Red</i> [/INST] red", "👩‍👩‍👧", "| a | b |\n|---|---|\n", "### Instruction:\nWhy?", "\n\nRed.\n\n",
]  # fmt: skip
SYSTEM = ["Be brief.", " Be brief.\n", "You are a pirate.\n\n/think", "a"]


def dialogue(draw: random.Random, control: list[str]) -> list[Message]:
    """Some turns, with and without a system message, at times late; some texts spell a token of `control`."""

    def text(texts: list[str]) -> str:
        one = draw.choice(texts)
        if control and draw.random() < 0.15:
            at = draw.randint(0, len(one))
            one = one[:at] + draw.choice(control) + one[at:]
        return one

    messages = [Message(role="system", content=text(SYSTEM))] if draw.random() < 0.4 else []
    for turn in range(draw.choice([1, 1, 1, 2, 2, 3, 4, 5, 9])):
        if turn and draw.random() < 0.1:
            messages.append(Message(role="system", content=text(SYSTEM)))
        messages.append(Message(role="user", content=text(USER)))
        messages.append(Message(role="assistant", content=text(ANSWERS)))
    return messages


def faults(tokenizer: Any, messages: list[Message]) -> list[str]:
    """What is wrong with the training rows of a dialogue; nothing if they are exact. Raises where it is refused."""
    told: set[str] = set()
    turns = []
    for row in encode_demonstration(tokenizer, messages, told):
        starts = [
            i
            for i, label in enumerate(row.labels)
            if label != IGNORED and (row.labels[i - 1] in (IGNORED, tokenizer.eos_token_id))
        ]
        for start in starts:
            stop = row.labels.index(tokenizer.eos_token_id, start) + 1
            if row.labels[start:stop] != row.input_ids[start:stop]:
                return ["labels are other tokens than the row's"]
            turns.append((row.input_ids[:start], row.input_ids[start:stop]))
    asked = [i for i, message in enumerate(messages) if message.role == "assistant"]
    if len(turns) != len(asked):
        return [f"{len(turns)} turns are trained, of {len(asked)}"]
    found = []
    eos = tokenizer.eos_token_id
    for (prompt, answer), i in zip(turns, asked, strict=True):
        said = tokenizer.decode([eos, *answer], clean_up_tokenization_spaces=False)
        plain = [{"role": message.role, "content": message.content} for message in messages[:i]]
        roles = tuple(message.role for message in messages[:i])
        if (
            said
            != tokenizer.eos_token
            + blank(tokenizer, tokenizer.get_chat_template(), roles)
            + messages[i].content
            + tokenizer.eos_token
        ):
            found.append(f"turn {i} is trained as {said!r}, but reads {messages[i].content!r}")
        rendered = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
        spelled = any(token in message.content for message in messages[:i] for token in tokenizer.get_added_vocab())
        if not spelled and prompt != tokenizer(rendered, add_special_tokens=False)["input_ids"]:
            found.append(f"turn {i} is asked in other tokens than transformers gives")
        for message in messages[:i]:
            kept = message.content.split("</think>")[-1] if message.role == "assistant" else message.content
            if kept.strip() not in tokenizer.decode(prompt, clean_up_tokenization_spaces=False):
                found.append(f"the prompt of turn {i} has not {kept!r}")
            if message.content not in rendered and not told:
                found.append(f"nothing was told of {message.content!r}")
        bare = bare_prompt(tokenizer, tokenizer.get_chat_template(), roles)
        special = set(tokenizer.all_special_ids)
        if sum(token in special for token in prompt) > sum(token in special for token in bare):
            found.append(f"the prompt of turn {i} has control tokens that a text spells")
        if special & set(answer[:-1]):
            found.append(f"turn {i} trains control tokens that a text spells")
    return found


@lru_cache(maxsize=4096)
def bare_prompt(tokenizer: Any, template: str, roles: tuple[str, ...]) -> list[int]:
    """The tokens of a prompt of these roles that says nothing."""
    turns = [{"role": role, "content": "x"} for role in roles]
    return list(tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False))


@lru_cache(maxsize=4096)
def blank(tokenizer: Any, template: str, roles: tuple[str, ...]) -> str:
    """The blank that the template writes between a prompt and its answer; empty if it writes something else."""
    turns = [{"role": role, "content": "x"} for role in roles]
    asked = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "~~~"}], tokenize=False)
    between = whole.partition("~~~")[0].removeprefix(asked)
    return between if between == " " else ""


# ---- Tokenizers -------------------------------------------------------------------------------------------------

CONTROL = re.compile(r"<\|[^<>|\s]+\|?>|<[^<>|\s]+\|>|<｜[^<>\s]+｜>|</?[a-z_]+>|\[/?[A-Z_]+\]")
"""What templates write for control tokens; those that are plain tags are added tokens, but not special ones."""


def tiny_tokenizer(template: str) -> Any:
    """A byte-level tokenizer of some 300 tokens with the template, its control tokens, and an EOS that is none."""
    words = sorted({word for word in CONTROL.findall(template) if word not in ("<|eos|>", "<|bos|>")})
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*USER, *ANSWERS], trainer)
    backend.add_special_tokens([word for word in words if not TAG.fullmatch(word)])
    backend.add_tokens([word for word in words if TAG.fullmatch(word)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|bos|>", eos_token="<|eos|>")
    tokenizer.chat_template = template
    return tokenizer


def tried(tokenizers: list[Path], templates: list[Path]) -> Iterator[tuple[str, Any]]:
    for file in templates:
        yield f"tiny/{file.stem}", tiny_tokenizer(file.read_text(encoding="utf-8"))
    for folder in sorted({file.parent for root in tokenizers for file in root.rglob("tokenizer.json")}):
        for template in ("auto", *NAMED_TEMPLATES):
            try:
                tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            except ValueError as error:
                print(f"{folder}: left out: {str(error).splitlines()[0][:120]}")
                break
            with suppress(ModelError):
                set_template(tokenizer, ModelConfig(chat_template=template))
                yield f"{folder}/{template}", tokenizer


def named_templates() -> list[Path]:
    """Those that come with Trueup."""
    return sorted(TEMPLATES.glob("*.jinja"))


def shipped_templates() -> list[Path]:
    """Those of the installed TRL, which is not imported for it."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None and spec.origin is not None
    return sorted((Path(spec.origin).parent / "chat_templates").glob("*.jinja"))


# ---- Counts -----------------------------------------------------------------------------------------------------


def count(tokenizer: Any, dialogues: int, seed: int = 0, fold_system: bool = False) -> tuple[Counter[str], list[str]]:
    """How many dialogues are exact, refused and wrong, and what was said of the last two, each text once."""
    counts, lines = Counter[str](), dict[str, None]()
    try:
        set_template(tokenizer, ModelConfig(fold_system=fold_system))
    except ModelError as error:
        return Counter(refused=dialogues), [f"refused: {error}"]
    control = [str(token) for token in tokenizer.all_special_tokens][:20]
    for n in range(dialogues):
        messages = dialogue(random.Random(f"{seed}/{n}"), control)
        try:
            found = faults(tokenizer, messages)
        except (DataError, ModelError) as error:
            counts["refused"] += 1
            lines[f"refused: {error}"] = None
        else:
            counts["wrong" if found else "exact"] += 1
            lines |= dict.fromkeys(f"WRONG: {fault}" for fault in found)
    return counts, sorted(lines, key=lambda line: line.startswith("refused"))


# ---- Table ------------------------------------------------------------------------------------------------------


def table() -> list[str]:
    """A row for each family: what `set_template` makes of its template, and how a dialogue of two turns is trained."""
    rows = [
        "| template | an answer is asked for with | it ends with | thinking | system text | two turns |",
        "|---|---|---|---|---|---|",
    ]
    for source, files in (("TRL", shipped_templates()), ("Trueup", named_templates())):
        for file in files:
            if not file.stem.endswith("_training"):
                rows.append(_row(f"{file.stem} ({source})", tiny_tokenizer(file.read_text(encoding="utf-8"))))
    return rows


def _row(name: str, tokenizer: Any) -> str:
    settled = set_template(tokenizer, ModelConfig())
    user, answer = Message(role="user", content="~U~"), Message(role="assistant", content="~A~")
    asked = tokenizer.apply_chat_template(
        [user.model_dump(include={"role", "content"})], add_generation_prompt=True, tokenize=False
    ).rpartition("~U~")[2]
    thinking = "off, by its switch" if "thinking is off" in settled else "none"
    if "think>" in asked and thinking == "none":
        thinking = "off, closed before the answer"
    try:
        encode_demonstration(tokenizer, [Message(role="system", content="~S~"), user, answer])
        system = "yes"
    except (DataError, ModelError):
        system = "`fold_system`"
    rows = encode_demonstration(tokenizer, [user, answer, user, answer])
    trained = "one row" if len(rows) == 1 else "a row for each turn"
    return f"| {name} | {_code(asked)} | {_code(tokenizer.eos_token)} | {thinking} | {system} | {trained} |"


def _code(text: str) -> str:
    return "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, nargs="*", default=[])
    parser.add_argument("--templates", type=Path, nargs="*")
    parser.add_argument("--dialogues", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fold-system", action="store_true")
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    logging.set_verbosity_error()
    if args.table:
        print("\n".join(table()))
        return
    templates = [*shipped_templates(), *named_templates()]
    if args.templates is not None:
        templates = sorted(file for folder in args.templates for file in folder.glob("*.jinja"))
    total, started, tries = Counter[str](), time.time(), 0
    for name, tokenizer in tried(args.tokenizers, templates):
        counts, lines = count(tokenizer, args.dialogues, args.seed, args.fold_system)
        total += counts
        tries += 1
        print(f"{name:<50} exact {counts['exact']:>3}  refused {counts['refused']:>3}  wrong {counts['wrong']}")
        for line in lines[:2]:
            print(f"    {line[:240]}")
    print(
        f"{args.dialogues} dialogues x {tries} templates: exact {total['exact']}, refused {total['refused']}, "
        f"wrong {total['wrong']} ({time.time() - started:.0f} s)"
    )


if __name__ == "__main__":
    main()
