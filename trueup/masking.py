"""Secrets stay out of artifacts: what is written down, printed or handed on has `***` in their place."""

from __future__ import annotations

import re
from typing import Any

HIDDEN = "***"
_NAMES = (
    "password passwd pwd secret client_secret token access_token auth_token hub_token api_key apikey api-key key "
    "authorization sslpassword passphrase credentials"
).split()
_PASSWORD = re.compile(r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s:/?#@]*:)\S*(?=@)", re.IGNORECASE)
"""The password of `scheme://user:password@host`, up to the last @: a password may hold one, and a slash."""
_TOKEN = re.compile(r"(?P<before>\bhttps?://)[^\s:/?#@]+(?=@)", re.IGNORECASE)
"""Where a web address has only one word before its @, that word is a token."""
_PARAMETER = re.compile(rf"(?P<before>[?&;](?:{'|'.join(_NAMES)})=)[^\s&;#]*", re.IGNORECASE)


_PASSWORD_PARAMETER = re.compile(r"(?P<before>[?&;](?:ssl)?pass(?:word|wd)=)[^\s&;#]*", re.IGNORECASE)


def without_passwords(text: str) -> str:
    """A text for a terminal: the passwords of its URLs are hidden. The token of a link that lets somebody in stays."""
    for pattern in (_PASSWORD, _TOKEN, _PASSWORD_PARAMETER):
        text = pattern.sub(rf"\g<before>{HIDDEN}", text)
    return text


def masked(value: Any, key: str = "") -> Any:
    """Plain data with every secret replaced: passwords and keys inside URLs, and whatever a secret's name holds.

    value  text, or any nesting of dicts and lists; a copy is returned
    """
    if isinstance(value, dict):
        return {name: masked(inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [masked(inner, key) for inner in value]
    if not isinstance(value, str):
        return value
    if key.lower() in _NAMES and key.lower() != "key":
        return HIDDEN if value else value
    for pattern in (_PASSWORD, _TOKEN, _PARAMETER):
        value = pattern.sub(rf"\g<before>{HIDDEN}", value)
    return value
