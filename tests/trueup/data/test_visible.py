"""Characters that cannot be seen are marks, and stay what they are where they shape what is read."""

from __future__ import annotations

import re
import time
from html import unescape

import pytest

from trueup.data.visible import mark, seen


def shown(text: str) -> str:
    return unescape(re.sub(r"<[^<>]*>", "", seen(text)))


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("a\u200bb", "aZWSPb"),
        ("\u202eabc\u202c", "RLOabcPDF"),
        ("a\u2066b\u2069\u200e\u200f", "aLRIbPDILRMRLM"),
        ("x\x00y\x1b[8mz\x7f", "xU+0000yU+001B[8mzU+007F"),
        ("a\u200dx", "aZWJx"),
        ("soft\u00adhyphen\ufeff\u2060", "softSHYhyphenBOMWJ"),
        ("a\ufe0f\u3164\u115f", "aU+FE0FU+3164U+115F"),
        ("🏴\U000e0067\U000e0062", "🏴U+E0067U+E0062"),
        ("a\u2028b\u2029c\rd", "aU+2028bU+2029cU+000Dd"),
        ("\u200b" * 12_000, "ZWSP×12000"),
    ],
)
def test_what_cannot_be_seen_is_named(text: str, read: str) -> None:
    assert shown(text) == read
    assert not re.search("[\u200b-\u200f\u202a-\u202e\u2066-\u2069\x00\x1b]", seen(text))


@pytest.mark.parametrize(
    "text",
    [
        "می\u200cخواهم",
        "क्\u200dष",
        "👨\u200d👩\u200d👧 ❤\ufe0f 1\ufe0f\u20e3",
        "葛\U000e0100",
        "a\tb\r\nc\nd",
        "نص عربي",
    ],
)
def test_what_shapes_what_is_read_stays(text: str) -> None:
    assert shown(text) == text and "<span" not in seen(text)


def test_text_is_escaped() -> None:
    assert seen('<b a="1">&\u200b') == (
        '&lt;b a=&#34;1&#34;&gt;&amp;<span class="tu-mark" dir="ltr" title="zero width space">ZWSP</span>'
    )
    assert mark("\u202e") == "RLO" and mark("\u061c\u061c") == "ALM×2"


@pytest.mark.parametrize(
    "unit", ["\u200b", "\u200b\u200c", "👨\u200d", "می\u200c", "\u202e", "a", "\u0301", "\r\n", "\r"]
)
def test_no_text_takes_long(unit: str) -> None:
    """The least of three is measured: a collection of garbage falls into one of them."""

    def seconds(characters: int) -> float:
        def once() -> float:
            began = time.process_time()
            seen(unit * (characters // len(unit)))
            return time.process_time() - began

        return min(once() for _ in range(3))

    assert (long := seconds(100_000)) < 10 and long < 8 * seconds(25_000) + 0.2, (
        "four times the text takes about four times as long"
    )
