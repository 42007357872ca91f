"""What a word is in any script, and which texts are the same prompt."""

from __future__ import annotations

import time
import unicodedata

import pytest

from trueup.texts import distinct_n, repetition, self_similarity
from trueup.words import count_words, ngrams, normal, words

CHINESE = "面包放在冰箱里会更快变硬因为低温让淀粉重新结晶所以最好放在室温下保存"
JAPANESE = "パンは冷蔵庫に入れると早く硬くなるので室温で保存するのがよい"
THAI = "ขนมปังจะแข็งเร็วขึ้นในตู้เย็นเพราะความเย็นทำให้แป้งตกผลึกจึงควรเก็บไว้ข้างนอก"
LAO = "ເຂົ້າຈີ່ຈະແຂງໄວຂຶ້ນໃນຕູ້ເຢັນເພາະຄວາມເຢັນເຮັດໃຫ້ແປ້ງແຂງຕົວ"
KHMER = "នំប៉័ងឆាប់រឹងនៅក្នុងទូទឹកកកព្រោះភាពត្រជាក់ធ្វើឱ្យម្សៅកក"
BURMESE = "ပေါင်မုန့်သည်ရေခဲသေတ္တာထဲတွင်ပိုမြန်မြန်မာသည်"
UNSPACED = {"zh": CHINESE, "ja": JAPANESE, "th": THAI, "lo": LAO, "km": KHMER, "my": BURMESE}


def test_words_of_a_language_with_blanks_are_whole_whatever_marks_they_bear() -> None:
    assert words("Don’t say “no”: a_b, e\u0301té!") == ["don’t", "say", "no", "a", "b", "e\u0301té"]
    assert words("हिन्दी में लिखा है") == ["हिन्दी", "में", "लिखा", "है"]
    assert words("한국어 띄어쓰기, مرحبا") == ["한국어", "띄어쓰기", "مرحبا"]
    assert count_words("한국어 띄어쓰기 - three. four") == 5, "what stands between blanks"


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
def test_text_without_blanks_has_a_length_that_grows_with_it(text: str) -> None:
    lengths = [count_words(text[:n]) for n in range(0, len(text), 6)]
    assert lengths == sorted(lengths) and 0 == lengths[0] < lengths[1] < lengths[-1]
    assert 8 <= count_words(text) <= 30, "about as many words as its translation has"
    assert count_words(text + text) == pytest.approx(2 * count_words(text), rel=0.1)
    assert "".join(words(text)) == text.lower()


@pytest.mark.parametrize("text", UNSPACED.values(), ids=UNSPACED)
def test_repetition_is_seen_without_blanks_and_only_where_it_is(text: str) -> None:
    assert repetition([text]) == 0 and repetition([text + "x " + text]) == 1
    assert distinct_n([text]) == 1 and distinct_n([text] * 4) == pytest.approx(1 / 4)
    assert self_similarity([text, text]) == 1 and self_similarity([text, text[::-1]]) < 0.2


def test_a_run_of_words_takes_as_many_tokens_as_its_script_needs_for_them() -> None:
    assert ngrams("A b, c d", 3) == [("a", "b", "c"), ("b", "c", "d")]
    assert ngrams("a b", 3) == []
    assert ngrams("面包放在冰箱", 3) == [tuple("面包放在冰"), tuple("包放在冰箱")]  # 1.5 characters to a word
    assert ngrams("use 面包 here", 2)[0] == ("use", "面", "包")


def test_texts_that_read_the_same_are_the_same_prompt() -> None:
    text = "Où est le café ?"
    same = [
        unicodedata.normalize("NFD", text),
        "Où est\u200b le ca\u00adfé ?",
        "\ufeffOù est le café\u2060 ?",
        "Où\r\nest\tle\u00a0café ?\u200e",
        "\u202bOù est le café ?\u202c",
        "Où est le\x00 café\x1b ?\ufe0f",
        "Où est le cafe\u034f\u0301 ?",  # a joiner that would keep them apart
    ]
    assert {normal(one) for one in same} == {text}
    for other in ("Ou est le café ?", "Où est le café?", "où est le café ?", "Où est le café ？"):
        assert normal(other) != text


DEGENERATE = [
    "\n",
    " ",
    "a",
    "a ",
    "\u0301",
    "e\u0301",
    "\u200d",
    "👨\u200d",
    "中",
    "ก",
    "กำ",
    "’",
    "a’",
    "_",
    "ー",
    "\u202e",
]


@pytest.mark.parametrize("unit", DEGENERATE)
def test_no_text_takes_long_to_count(unit: str) -> None:
    text = unit * (100_000 // len(unit))
    began = time.process_time()
    count_words(text), words(text), ngrams(text, 3), normal(text)
    assert time.process_time() - began < 2
