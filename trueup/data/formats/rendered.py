"""A text that somebody's chat template has rendered, as the turns that it was made of.

A table of templates: how a turn begins, how it ends, and whether a system message stands before the first mark. A text
is read whole or not at all: a turn that does not end as its template ends turns is none of that template.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from trueup.data.formats.columns import Values
from trueup.data.jsonl import excerpt

ROLES = {"system": "system", "user": "user", "instruction": "user", "[inst]": "user"}
ROLES |= dict.fromkeys(("assistant", "model", "response", "[/inst]"), "assistant")


class Template(NamedTuple):
    name: str
    mark: re.Pattern[str]
    """Begins a turn, and says whose."""
    end: str
    """Ends a turn."""
    ending: tuple[str, ...] = ("system", "user", "assistant")
    """Whose turns end so; the last turn of a text may be cut."""
    preamble: bool = False
    """Whether what stands before the first mark is the system message."""


TEMPLATES = (
    Template("Llama 3", re.compile(r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\n\n"), "<|eot_id|>"),
    Template("Gemma", re.compile(r"<start_of_turn>(\w+)\n"), "<end_of_turn>"),
    Template("Zephyr", re.compile(r"<\|(system|user|assistant)\|>\n"), "</s>"),
    Template("Phi", re.compile(r"<\|(system|user|assistant)\|>\n"), "<|end|>"),
    Template("Llama 2, Mistral", re.compile(r"(\[/?INST\])"), "</s>", ("assistant",)),
    Template("Vicuna", re.compile(r"(?:\A|\s|(?<=</s>))(USER|ASSISTANT):"), "</s>", ("assistant",), True),
    Template("Alpaca", re.compile(r"(?:\A|\n\n)### (Instruction|Response):\n"), "</s>", ("assistant",), True),
)
_BEGIN = re.compile(r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*\Z")
_SYSTEM = re.compile(r"\A<<SYS>>\n(.*?)\n<</SYS>>\s*", re.DOTALL)
_INPUT = re.compile(r"\n\n### Input:\n")
_AFTER = ("<|end_of_text|>", "<|endoftext|>", "<eos>")


def turns_of_rendered(text: str, at: str) -> list[Values] | None:
    """The turns of a text in the marks of a template of the table; None for any other text.

    The space around the turns goes, as it does in most of these templates. Raises ValueError for a text that begins
    with a template's marks and does not go on so.
    """
    problem = None
    for template in TEMPLATES:
        before, *parts = template.mark.split(text)
        if len(parts) < 4 or not (_BEGIN.match(before) or (template.preamble and "\n\n" not in before.strip())):
            continue
        try:
            return _turns(template, before, list(zip(parts[::2], parts[1::2], strict=True)))
        except ValueError as error:
            problem = problem or f"{at}: {error}; write it as messages"
    if problem:
        raise ValueError(problem)
    return None


def _turns(template: Template, before: str, parts: list[tuple[str, str]]) -> list[Values]:
    before = "" if _BEGIN.match(before) else before.removeprefix("<s>").strip()
    turns = [{"role": "system", "content": before}] if before else []
    for number, (mark, body) in enumerate(parts, start=1):
        role = ROLES.get(mark.lower())
        if role is None:
            raise ValueError(f"{excerpt(mark)} speaks in the marks of {template.name}, which Trueup does not know")
        content, end, rest = body.partition(template.end)
        over = rest.strip() in ("", "<s>", *_AFTER) if role in template.ending else not end
        if not over or (not end and role in template.ending and number < len(parts)):
            raise ValueError(f"begins with the marks of {template.name}, and its turn {number} does not end as they do")
        if role == "user" and (system := _SYSTEM.match(content.lstrip())):
            turns.append({"role": "system", "content": system[1].strip()})
            content = content.lstrip()[system.end() :]
        if template.name == "Alpaca" and role == "user":
            content = _INPUT.sub("\n\n", content, count=1)
        turns.append({"role": role, "content": content.strip()})
    return turns
