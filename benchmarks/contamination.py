"""How many contaminated rows among many are found, how many of those found are none, and in what time?

    python benchmarks/contamination.py [ROWS]

It draws so many rows (100,000) of two turns of 20 to 180 words, few of which are frequent and many rare, and 2,000
texts of an exam like them. One row in a hundred has 13 to 20 words in a row of such a text, in other case and with
other punctuation. It prints recall, precision, the processor's seconds and the peak of memory above the rows.
"""

from __future__ import annotations

import random
import sys
import time

from duplicates import peak, vocabulary
from trueup.data.duplicates.contamination import WORDS, shared_with

EXAMS = 2000
SHARE = 0.01
"""Of the rows, those that are contaminated."""


def main() -> None:
    count, rng = int(float(sys.argv[1] if len(sys.argv) > 1 else 100_000)), random.Random(0)
    vocabulary_words = vocabulary(rng)

    def text() -> list[str]:
        return [vocabulary_words[int(len(vocabulary_words) * rng.random() ** 4)] for _ in range(rng.randint(20, 180))]

    exams, rows, planted = [text() for _ in range(EXAMS)], list[list[str]](), set[int]()
    for number in range(count):
        turns = [text(), text()]
        if rng.random() < SHARE:
            exam, length = rng.choice(exams), rng.randint(WORDS, 20)
            begin = rng.randrange(len(exam) - length + 1)
            turns[rng.randrange(2)][7:7] = [f"{word.upper()}," for word in exam[begin : begin + length]]
            planted.add(number)
        rows.append([" ".join(turn) for turn in turns])
    before, began = peak(), time.process_time()
    found = {one.row for one in shared_with([" ".join(exam) for exam in exams], rows).shared}
    seconds = time.process_time() - began
    print("| rows | recall | precision | s of the processor | MiB above the rows |\n|---|---|---|---|---|")
    recall, precision = len(found & planted) / len(planted), len(found & planted) / len(found)
    print(f"| {count:,} | {recall:.2%} of {len(planted):,} | {precision:.2%} | {seconds:.1f} | {peak() - before} |")


if __name__ == "__main__":
    main()
