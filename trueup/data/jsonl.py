"""JSON that people bring, read strictly: what Python's reader would repair or lose in silence is a ValueError.

A key that stands twice, a number that is not finite, NUL and half surrogate pairs in a text, nesting beyond MAX_DEPTH:
no database stores these, or not all of them the same.
"""

from __future__ import annotations

import json
import math
from typing import Any


class Unreadable(ValueError):
    """Stands for an entry that is not sound JSON: why, and the text of its line."""

    def __init__(self, problem: str, line: str = ""):
        super().__init__(problem)
        self.line = line


MAX_DEPTH = 200
"""Objects and lists within each other. A reply in an OASST tree takes two."""
Entry = tuple[str, Any]
"""Where a row stands, and its value."""


def excerpt(value: Any, most: int = 60) -> str:
    """A value as JSON for an error message, of bounded length."""
    try:
        text = value if isinstance(value, Flaw) else json.dumps(value, ensure_ascii=False, default=str)
    except (ValueError, RecursionError):
        text = f"a {type(value).__name__}"
    return cut(text, most)


def cut(text: str, most: int) -> str:
    """A text of bounded length, on one line, for an error message."""
    text = text.replace("\n", " ").encode(errors="backslashreplace").decode()
    return text if len(text) <= most else f"{text[: most - 3]}..."


def loads(text: str) -> Any:
    """The value of a JSON text, or an Unreadable that says why there is none."""
    value = sound(load_document(text))
    if isinstance(value, Unreadable):
        value.line = text
    return value


class Flaw(str):
    """Stands in a value for what could not be read soundly; its text says what was found."""


def _object(pairs: list[tuple[str, Any]]) -> Any:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    return Flaw(f"the key {excerpt(twice, 40)} stands twice in one object; take one of them out")


def _float(text: str) -> Any:
    value = float(text)
    return value if math.isfinite(value) else Flaw(f"{cut(text, 20)} is no finite number")


def _int(text: str) -> Any:
    try:
        return int(text)
    except ValueError:  # thousands of digits
        return Flaw(f"{cut(text, 20)} has {len(text)} digits, more than a number may have")


def _constant(name: str) -> Any:
    return Flaw(f"{name} is no JSON number; write null where there is none")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_int, parse_constant=_constant)
"""What it could not read soundly, `sound` finds in the value."""


def load_document(text: str) -> Any:
    """The value of a JSON text with its flaws, or an Unreadable if it is not JSON."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        return Unreadable("nested too deeply")
    except json.JSONDecodeError as error:
        hint = "; is it one value a line? Then name it .jsonl" if error.lineno > 1 and "Extra" in error.msg else ""
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return Unreadable(f"not JSON ({error.msg} at {line}column {error.colno}){hint}")


def sound(value: Any) -> Any:
    """The value, or an Unreadable for a flaw in it."""
    if isinstance(value, Unreadable):
        return value
    stack: list[tuple[Any, tuple[Any, ...]]] = [(value, ())]
    while stack:
        one, path = stack.pop()
        problem = None
        if isinstance(one, Flaw):
            problem = str(one)
        elif isinstance(one, str):
            problem = _text_problem(one)
        elif isinstance(one, list | dict):
            if len(path) >= MAX_DEPTH:
                return Unreadable(f"{cut(str(path[0]), 40)}: nested too deeply (more than {MAX_DEPTH} levels)")
            items: Any = one.items() if isinstance(one, dict) else enumerate(one)
            for key, inner in items:
                if isinstance(key, str) and (problem := _text_problem(key)):
                    break
                if isinstance(inner, str | list | dict):
                    stack.append((inner, (*path, key)))
        if problem:
            where = ".".join(cut(str(key), 40) for key in path[:6])
            return Unreadable(f"{where}: {problem}" if where else problem)
    return value


def _text_problem(text: str) -> str | None:
    if "\0" in text:
        return "holds the character NUL (\\u0000), which no database stores; take it out"
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = f"half of a surrogate pair, {text[error.start]!a}"
            return f"not Unicode text ({half}); write the whole character, or take it out"
    return None
