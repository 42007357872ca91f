"""Masking: artifacts, messages and exports have `***` in place of each secret."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_SECRET_NAME = re.compile(
    r"(^|[_-])(passw(or)?d|pwd|passphrase|secrets?|credentials|authorization|(api|secret|access)[_-]?key|token)$",
    re.IGNORECASE,
)
_OF_A_VOCABULARY = {f"{name}_token" for name in "bos eos pad unk sep cls mask image".split()}
"""Keys with a secret's ending that name a token of a tokenizer."""
# Each part has a greatest length: a page of a run that somebody sent is masked too, and must not take hours.
_PASSWORD = re.compile(r"(\w[\w+.-]{0,40}:/{1,2}[^\s:/?#@]{0,500}):\S{0,2000}@")
"""The password of `scheme://user:password@host`, up to the last @: a password may contain @ and a slash. As a path the
address has one slash."""
_TOKEN = re.compile(r"(https?:/{1,2})[^\s:/?#@]{1,2000}@", re.IGNORECASE)
"""A token: the only word before the @ of a web address."""
_SECRET_PARAMETER = re.compile(
    r"([?&;][\w.-]{0,60}(?:key|token|secret|passw|pwd|sig|auth)[\w.-]{0,60}=)[^\s&;#]+", re.IGNORECASE
)
_PASSWORD_PARAMETER = re.compile(r"([?&;][\w.-]{0,60}passw[\w.-]{0,60}=)[^\s&;#]+", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """A text for a terminal, with the passwords of its URLs hidden. The token of a sign-in link stays."""
    text = _TOKEN.sub(rf"\1{HIDDEN}@", _PASSWORD.sub(rf"\1:{HIDDEN}@", text))
    return _PASSWORD_PARAMETER.sub(rf"\1{HIDDEN}", text)


def masked(value: Any, key: str = "") -> Any:
    """A copy of plain data with every secret replaced: passwords and keys inside URLs, and values of secret names.

    value  text, or any nesting of dicts and lists. In doubt a value is hidden
    """
    if isinstance(value, dict):
        return {name: masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if _SECRET_NAME.search(key) and key.lower() not in _OF_A_VOCABULARY:
        return HIDDEN if value else value
    return _SECRET_PARAMETER.sub(rf"\1{HIDDEN}", without_passwords(value))
