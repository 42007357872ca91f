"""How many near-duplicates among many texts are found, how many of those found are none, and in what time?

    python benchmarks/duplicates.py [TEXTS]

It draws so many texts (20,000) of 20 to 180 words, few of which are frequent and many rare. One text in ten is an
earlier one with a few changes or many: case, punctuation, a word in another place, a word less, more or other. Which of
these are nearly the same, from a resemblance of 0.8 on, is said by sets of strings, without signatures and without the
code that is measured. It prints recall and precision of that code, of datasketch's index in its place for up to 20,000
texts, the processor's seconds and the peak of memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import random
import re
import string
import sys
import time
from collections.abc import Callable
from pathlib import Path

from trueup.data.duplicates.near import Near, repeated
from trueup.data.duplicates.resemblance import ALIKE

SHARE = 0.1
"""Of the texts, those that are an earlier one with changes."""


def vocabulary(rng: random.Random) -> list[str]:
    return ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 10))) for _ in range(50_000)]


def changed(text: str, words: list[str], rng: random.Random) -> str:
    """The text with a few changes or many."""
    said = text.split()
    for _ in range(rng.choice((1, 2, 3, len(said) // 10, len(said) // 5, len(said) // 3)) or 1):
        place = rng.randrange(len(said))
        match rng.choice(("other", "less", "more", "moved", "case", "mark")):
            case "other":
                said[place] = rng.choice(words)
            case "less" if len(said) > 10:
                del said[place]
            case "more":
                said.insert(place, rng.choice(words))
            case "moved":
                said.insert(rng.randrange(len(said)), said.pop(place))
            case "case":
                said[place] = said[place].upper()
            case _:
                said[place] += rng.choice(".,!?;:")
    return " ".join(said)


def planted(count: int, seed: int = 0) -> tuple[list[list[str]], dict[int, int]]:
    """(texts, {index: index of the earlier text that it was made of})."""
    rng = random.Random(seed)
    words = vocabulary(rng)
    texts: list[str] = []
    of: dict[int, int] = {}
    fresh: list[int] = []
    for index in range(count):
        if fresh and rng.random() < SHARE:
            of[index] = rng.choice(fresh)
            texts.append(changed(texts[of[index]], words, rng))
        else:
            fresh.append(index)
            said = (words[int(len(words) * rng.random() ** 4)] for _ in range(rng.randint(20, 180)))
            texts.append(" ".join(said).capitalize() + ".")
    return [[text] for text in texts], of


def _pieces(text: str) -> set[str]:
    said = " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())
    return {said[i : i + 5] for i in range(len(said) - 4)}


def alike(a: str, b: str) -> float:
    """By sets of strings."""
    one, other = _pieces(a), _pieces(b)
    return len(one & other) / len(one | other)


def by_datasketch(texts: list[list[str]]) -> list[Near]:
    """The same search by datasketch's index and sets of strings."""
    datasketch = importlib.import_module("datasketch")  # no requirement of ours
    index = datasketch.MinHashLSH(threshold=ALIKE, num_perm=128, params=(25, 5))
    near = []
    for number, (text,) in enumerate(texts):
        sketch = datasketch.MinHash(num_perm=128)
        sketch.update_batch([piece.encode() for piece in _pieces(text)])
        others = [other for other in sorted(index.query(sketch)) if alike(text, texts[other][0]) >= ALIKE]
        if others:
            near.append(Near(number, others[0], 1))
        else:
            index.insert(number, sketch)
    return near


def measure(name: str, search: Callable[[list[list[str]]], list[Near]], texts: list[list[str]], near: set[int]) -> None:
    began = time.process_time()
    found = search(texts)
    seconds = time.process_time() - began
    right = sum(alike(texts[one.text][0], texts[one.like][0]) >= ALIKE for one in found)
    recall = len(near & {one.text for one in found}) / len(near)
    print(f"| {name} | {len(texts):,} | {recall:.2%} of {len(near):,} | {right / len(found):.2%} | {seconds:.1f} |")


def peak() -> int:
    """MiB that the process has taken at most."""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 2**10  # type: ignore[index]


def main() -> None:
    texts, of = planted(int(float(sys.argv[1] if len(sys.argv) > 1 else 20_000)))
    near = {index for index, source in of.items() if alike(texts[index][0], texts[source][0]) >= ALIKE}
    before = peak()
    print("| signatures by | texts | recall | precision | s of the processor |\n|---|---|---|---|---|")
    measure("rensa", repeated, texts, near)
    above = peak() - before
    if len(texts) <= 20_000 and importlib.util.find_spec("datasketch"):
        measure("datasketch", by_datasketch, texts, near)
    print(f"\n{above} MiB above the texts by rensa; {len(of) - len(near):,} changed texts resemble theirs less")


if __name__ == "__main__":
    main()
