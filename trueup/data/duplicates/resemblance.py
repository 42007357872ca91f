"""How far two texts resemble, and which pairs of many may.

Resemblance is |A & B| / |A | B| of the sets of 5 characters in a row (Broder 1997,
https://doi.org/10.1109/SEQUEN.1997.666900). Pairs are proposed by MinHash signatures, so that the time grows with the
number of texts and not with that of pairs; rensa computes the signatures. Texts in which other numbers stand are no
pair, however much they resemble: "What is 12 times 7?" is another question than "What is 12 times 8?".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import regex

from trueup.data.words import normal

Text = Sequence[str]
"""A text in one part or several, such as what is asked and what is answered. Two resemble as far as the parts do that
resemble least."""
ALIKE = 0.8
"""Resemblance from which two texts count as nearly the same, as in Lee et al. 2022
(https://doi.org/10.18653/v1/2022.acl-long.577)."""

# ---- Two texts --------------------------------------------------------------------------------------------------

_SHINGLE = 5
_MARKS = regex.compile(r"[\p{P}--[\-*/%&@#_\\]]+", regex.V1)
_NUMBER = regex.compile(r"\d+")
_EVEN_MIX, _ODD_MIX = np.uint64(29), np.uint64(0x9E3779B97F4A7C15)


def plain(text: str) -> str:
    """A text in lower case and without punctuation; signs that a calculation or a program has stay."""
    return " ".join(_MARKS.sub(" ", normal(text).lower()).split())


def plain_parts(text: Text) -> list[str]:
    return [plain(part) for part in text]


def shingles(plain_text: str) -> np.ndarray:
    """(S,) hashes of all runs of 5 characters, in order; of a shorter text one hash."""
    return shingles_of_all([[plain_text]])[0]


def shingles_of_all(texts: Sequence[Text]) -> tuple[np.ndarray, np.ndarray]:
    """(S,) hashes of the shingles of plain texts behind each other, (N + 1,) where those of each text begin and end.
    Of equal runs in two parts of a text the hashes differ."""
    lengths = np.array([len(part) for text in texts for part in text], dtype=np.int64)
    number = np.array([number for text in texts for number in range(len(text))], dtype=np.uint64)
    joined = "".join(part for text in texts for part in text)
    codes = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32).astype(np.uint64)
    begins = np.cumsum(lengths) - lengths
    rest = np.repeat(begins + lengths, lengths) - np.arange(len(codes))  # from each character to the end of its part
    hashes = np.repeat(number, lengths)
    padded = np.concatenate([codes, np.zeros(_SHINGLE, dtype=np.uint64)])
    for offset in range(_SHINGLE):  # unsigned integers wrap around, as is meant
        mixed = (hashes + padded[offset : offset + len(codes)]) * _ODD_MIX
        mixed ^= mixed >> _EVEN_MIX
        hashes = np.where(rest > offset, mixed, hashes)
    counts = np.where(lengths, np.maximum(lengths - _SHINGLE + 1, 1), 0)
    is_first = np.zeros(len(codes), dtype=bool)
    is_first[begins[lengths > 0]] = True
    of_texts = np.cumsum([0, *map(len, texts)])
    return hashes[is_first | (rest >= _SHINGLE)], np.concatenate([[0], np.cumsum(counts)])[of_texts]


def distinct(values: np.ndarray) -> np.ndarray:
    """In order. `np.unique` hashes since NumPy 2.3, which takes six times as long for a text."""
    values = np.sort(values)
    return values[np.r_[True, values[1:] != values[:-1]]] if len(values) else values


def resemblance(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Of two texts, by the distinct shingles of each part. Parts that are both empty say nothing."""
    return min((_of_sets(*both) for both in zip(a, b, strict=True) if any(map(len, both))), default=0.0)


def _of_sets(a: np.ndarray, b: np.ndarray) -> float:
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


# ---- Many texts -------------------------------------------------------------------------------------------------

_SLOTS = 128
_BANDS, _ROWS = 25, 5
"""Two texts that resemble by 0.8 share a band with chance 0.99995, by 0.5 with 0.55."""
ALMOST = 0.65
"""Estimated resemblance from which a pair is proposed: a signature's standard error at 0.8 is 0.035, so the estimate of
two texts that resemble by 0.8 is below it once in 50,000 times."""
_BATCH = 250_000
"""Characters that are turned into signatures together."""
_COMPARED = 50
"""Texts of an equal band that all others of it are compared with: one that thousands share is a template."""
_MOST_PAIRS = 200_000
"""Pairs that are taken of one band's equals, at least one a text."""


class Signatures:
    """What is kept of many texts, 272 bytes of each, to propose the pairs that may resemble."""

    def __init__(self, texts: Sequence[Text]):
        self.numbers = np.zeros(len(texts), dtype=np.uint64)
        self.slots = np.zeros((len(texts), _SLOTS), dtype=np.uint16)
        """(N, 128) signatures, of which 16 bits are kept."""
        digests = np.zeros((len(texts), 2), dtype=np.uint64)  # 0 of a text without words
        batch: list[list[str]] = []
        waiting = begin = 0
        for index, text in enumerate(texts):
            parts = plain_parts(text)
            if any(parts):
                digests[index] = np.frombuffer(_digest("\x1e".join(parts)), dtype=np.uint64)
                numbers = "\x1e".join(" ".join(sorted(_NUMBER.findall(part))) for part in parts)
                self.numbers[index] = int.from_bytes(_digest(numbers)[:8], "big")
            batch.append(parts)
            waiting += sum(map(len, parts))
            if waiting >= _BATCH:
                self.slots[begin : index + 1] = _slots(batch)
                batch, waiting, begin = [], 0, index + 1
        if batch:
            self.slots[begin:] = _slots(batch)
        self.same = _first_equal(digests)
        """(N,) the first text that is the same but for case and punctuation; -1 of a text without words."""

    def pairs(self, also: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(i, j, estimated resemblance) of pairs that resemble by about ALMOST, i < j, by j and then i. Of texts
        that are the same but for case and punctuation only the first is compared.

        also  (N,) texts that all others are compared with, whatever stands before them
        """
        codes = np.zeros(0, dtype=np.int64)
        firsts = np.flatnonzero(self.same == np.arange(len(self.same)))
        for band in range(_BANDS):
            keys = _keys(self.slots[firsts, band * _ROWS : (band + 1) * _ROWS], self.numbers[firsts])
            of_band = [
                j[close] * len(self.same) + i[close]
                for i, j in _equal(keys, firsts, also)
                for close in [self._estimate(i, j) >= ALMOST]
            ]
            codes = distinct(np.concatenate([codes, *of_band]))
        j, i = np.divmod(codes, max(len(self.same), 1))
        return i, j, self._estimate(i, j)

    def _estimate(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        if not len(i):
            return np.zeros(0)
        starts = range(0, len(i), 100_000)
        return np.concatenate(
            [(self.slots[i[s : s + 100_000]] == self.slots[j[s : s + 100_000]]).mean(1) for s in starts]
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _first_equal(digests: np.ndarray) -> np.ndarray:
    """(N,) the first row that is equal to each; -1 of a row of zeros."""
    order = np.lexsort((digests[:, 1], digests[:, 0]))  # stable, so the first of equal rows comes first
    in_order = digests[order]
    is_new = np.r_[True, (in_order[1:] != in_order[:-1]).any(1)] if len(order) else np.zeros(0, dtype=bool)
    first = np.empty(len(order), dtype=np.int64)
    first[order] = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    first[~digests.any(1)] = -1
    return first


def _slots(batch: Sequence[Text]) -> np.ndarray:
    """(N, 128) the lower halves of signatures."""
    from rensa import RMinHash

    matrix = RMinHash.digest_matrix_from_flat_token_hashes(*shingles_of_all(batch), _SLOTS, 0)
    return np.array(matrix.to_rows(), dtype=np.uint32).astype(np.uint16)


def _keys(slots: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """(N,) one key for the slots of a band and an earlier key."""
    for column in slots.T:
        keys = (keys + column) * _ODD_MIX
        keys ^= keys >> _EVEN_MIX
    return keys


def _equal(keys: np.ndarray, indices: np.ndarray, also: np.ndarray | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(i, j) of pairs with equal keys, i < j; of many equal ones, those with the first of them."""
    order = np.argsort(keys, kind="stable")
    members, keys = indices[order], keys[order]
    starts = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]]) if len(keys) else np.zeros(0, dtype=np.int64)
    sizes = np.diff(np.r_[starts, len(keys)])
    two = starts[sizes == 2]
    yield members[two], members[two + 1]
    for start, size in zip(starts[sizes > 2], sizes[sizes > 2], strict=True):
        equal = members[start : start + size]
        most = max(1, min(_COMPARED, _MOST_PAIRS // size))
        with_them = equal[:most] if also is None else np.union1d(equal[:most], equal[also[equal]][:most])
        i, j = np.repeat(with_them, size), np.tile(equal, len(with_them))
        yield np.minimum(i, j)[i != j], np.maximum(i, j)[i != j]
