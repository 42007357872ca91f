"""Model text as HTML: readable, and harmless whatever it holds."""

from __future__ import annotations

import itertools
import random
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator

import pytest

from ui.pages.render import MAX_FORMULA, as_written, mathml, text_html


def visible(html: str) -> str:
    """What a reader sees of well-formed HTML."""
    return "".join(ET.fromstring(f"<div>{html}</div>").itertext())


def test_markdown_is_rendered_and_html_stays_text() -> None:
    assert text_html("**bold**\nnew line") == '<p dir="auto"><strong>bold</strong><br />\nnew line</p>\n'
    assert "<br>" not in text_html("use the <br> tag") and "&lt;br&gt;" in text_html("use the <br> tag")
    assert "empty answer" in text_html("  \n")


@pytest.mark.parametrize("source", ["$a^2$", r"\(a^2\)", "$$a^2$$", r"\[a^2\]", "$$\na^2\n$$", "\\[\na^2\n\\]"])
def test_latex_is_mathml_between_any_of_its_signs(source: str) -> None:
    html = text_html(f"so\n{source}\nis it" if "\n" in source else f"so {source} is it")
    assert "<msup><mi>a</mi><mn>2</mn></msup>" in html and "$" not in html
    assert ('display="block"' in html) is (source[:2] in ("$$", "\\["))
    assert "".join(visible(html).split()) == "soa2isit"


@pytest.mark.parametrize(
    "source", ["$5 and $10", "$5-$10", "a $ b $ c", "$ 5$", r"\$5 and \$6", "costs 5$", r"\\(x\\)"]
)
def test_prices_are_no_formulas(source: str) -> None:
    assert "<math" not in text_html(source)


def test_code_is_code_also_where_it_holds_signs_of_latex() -> None:
    html = text_html("`$x$`, `\\(y\\)`\n\n```\n$$\nz\n$$\n```")
    assert "<math" not in html and "<code>$x$</code>" in html and "$$\nz\n$$" in html


def test_a_line_of_a_formula_is_neither_a_list_nor_a_heading() -> None:
    html = text_html("$$\na\n- b\n= c\n===\n$$\nafter")
    assert "<li>" not in html and "<h1>" not in html and html.count("<math") == 1 and '<p dir="auto">after</p>' in html
    for quoted in ("> $$\n> a\n> $$", "1. $$\n   a\n   $$"):
        assert "<mi>a</mi></mrow></math>" in text_html(quoted)


def test_aligned_lines_are_a_table() -> None:
    found = mathml(r"\begin{aligned}a&=b\\c&=d\end{aligned}", display=True)
    assert found is not None and found.count("<mtr>") == 2 and "&" not in found


@pytest.mark.parametrize(
    "source",
    [r"$\frac{a$", r"$\nosuchcommand x$", "$a^$", "$}{$", f"$${'x' * (MAX_FORMULA + 1)}$$", r"$\left($", "$a&b$"],
)
def test_what_is_no_latex_is_shown_as_it_was_written(source: str) -> None:
    html = text_html(source)
    assert "<math" not in html and visible(html).strip() == source


ATTACKS = [
    r"$\text{<script>alert(1)</script>}$",
    r"$\text{&lt;img src=x onerror=alert(1)&gt;}$",
    r"$\text{&#x3c;svg onload=alert(1)&#x3e;}$",
    r"\(\href{javascript:alert(1)}{x}\)",
    r'\(\class{x" onclick="alert(1)}{x}\)',
    r'\(\style{background:url(//evil.example)" onclick="alert(1)}{x}\)',
    r'$\color{red" onmouseover="alert(1)}x$',
    r'$\hspace{1em" onclick="alert(1)}x$',
    r"$$</math><img src=x onerror=alert(1)>$$",
    r"$\mathrm{<iframe src=//evil.example>}$",
    r"$<script>$",
    r'$$\begin{array}{l"onload="x}a\end{array}$$',
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_formula_can_only_look_like_a_formula(attack: str) -> None:
    html = text_html(attack)
    for tag in ET.fromstring(f"<div>{html}</div>").iter():
        assert re.fullmatch(r"div|p|code|math|m[a-z]+|none", tag.tag)
        assert not tag.attrib.keys() & {"href", "style", "src", "mathcolor"} and tag.get("class") in (None, "tu-tex")
        assert not any(name.startswith("on") for name in tag.attrib)


def test_no_text_takes_long() -> None:
    """Each of these once took a time that grew with the square of its length, or ended in a RecursionError."""
    for text in ("\\[\n" * 3000, "$a " * 7000, "\\(" * 8000, "$" + "{" * 900 + "x" + "}" * 900 + "$", "$$a " * 4000):
        assert visible(text_html(text)).strip()


UNITS = [
    *("\n", " ", "\t", "\r\n", "`", "``` ", "~", "[", "]", "![", "[a](", "[a][", "](", "[a](b)", "[1]: a\n", "[a](\n"),
    *("*", "_", "**a", "*a ", "a*", "***", "<", "<!--", "<http://a>", "&", "$", "$a", "$$", "\\", "\\(", "\\[", "{"),
    *("|", "|a|\n|-|\n", "a|\n", "> ", ">", "- ", "1. ", "- a\n", "    a\n", "#", "# a\n", "=", "a\n=\n", "\n\n\n a"),
    *("e\u0301", "\u0301", "\u200b", "\u202e", "\u200b\u200c", "<|a", "</s>", "中", "ก", "👨\u200d", "a", "$x^2$ "),
]


def seconds_for(text: str) -> float:
    """Processor time of rendering a text."""
    began = time.process_time()
    text_html(text)
    return time.process_time() - began


@pytest.mark.parametrize("unit", UNITS)
def test_a_text_of_one_thing_for_ever_takes_a_time_in_proportion_to_its_length(unit: str) -> None:
    many = unit * (12_000 // len(unit))
    for text in (many, f"a{many}b", (unit * 6000)[:6000] + "|a|\n|-|\n" * 700):
        assert (
            min(seconds_for(text), seconds_for(text)) < 1.5
        )  # of two, since a collection of garbage may fall into one
        assert len(text_html(text)) < 100 * len(text)


def test_a_table_of_a_few_characters_is_no_page_of_a_million_cells() -> None:
    text = "|" + "a|" * 1000 + "\n|" + "-|" * 1000 + "\n" + "|x\n" * 2000
    assert len(text_html(text)) < 10 * len(text)


# ---- All of the text --------------------------------------------------------------------------------------------

BLOCKS = [
    "{}",
    "{} {}\n{}",
    "# {}\n\n{}",
    "{}\n===\n{}\n---",
    "- {}\n- {}\n  - {}\n    1. {}",
    "7. {}\n3) {}\n3) {}",
    "> {}\n> > {}\n{}",
    "```{}\n{}\n```",
    "~~~ {} {}\n{}",
    "    {}\n\n        {}",
    "|{}|{}|\n|-|:-:|\n|{}|{}|\n|{}|",
    "|{}|\n|-|\n|{}|{}|{}|",
    "[{}]: https://{}.example/{} '{}'\n{}",
    "[{}]: <{}>\n\n[{}][{}] ![{}][{}]",
    "[^1]: {}\n\n{}[^1]",
    '[{}](http://{} "{}") ![{}]({}) <https://{}.example>',
    "[{}](javascript:{}) [](http://{})",
    "<!-- {} --> <b>{}</b>\n<div hidden>\n{}\n</div>",
    "<script>\n{}\n</script>",
    "**{}** *{}* __{}__ ~~{}~~ `{}` \\{}",
    "&{}; &#65;{} &amp;{}",
    "$\\frac{{}}{{}}$ $\\text{{}}$ \\({}\\) $$\\phantom{{}}$$",
    "\\[\n\\begin{aligned}{}&={}\\\\{}&={}\\end{aligned}\n\\]",
    "$\\color{{}}x$ $\\hspace{-9em}{}$ $\\begin{array}{{}}{}\\end{array}$",
    "{}\u200b{}\u202e{}\x1b[8m{}\u2066{}",
    "$5 {} $6 {}",
    "***\n{}\n* * *\n{}",
    "- [ ] {}\n- [x] {}",
    "Term {}\n: {}\n\n+++\n{}\n+++",
    "<{}@{}.example> http://{}.example",
    "% {}\n\n{{}} {% {} %}",
]


def filled(block: str, count: Iterator[int]) -> str:
    """The block with a word of its own in each place."""
    return re.sub(r"\{\}", lambda _: f"q{next(count)}q", block)


def nested(block: str, rng: random.Random) -> str:
    """The block within lists and quotes, up to 25 levels deep."""
    for _ in range(rng.choice([0, 0, 1, 2, 8, 12, 25])):
        first, more = rng.choice([("> ", "> "), ("- ", "  "), ("1. ", "   "), ("10) ", "    ")])
        first_line, *lines = block.split("\n")
        block = "\n".join([first + first_line, *(more + line for line in lines)])
    return block


def missing(text: str) -> list[str]:
    """Words of the text that are not in its page, or not as often. Of a formula each letter is an element."""
    shown = "".join(visible(text_html(text)).split())
    return list((Counter(re.findall(r"q\d+q", text)) - Counter(re.findall(r"q\d+q", shown))).elements())


@pytest.mark.parametrize("seed", range(100))
def test_every_word_of_a_text_is_in_the_page(seed: int) -> None:
    rng, count = random.Random(seed), itertools.count()
    blocks = [nested(filled(rng.choice(BLOCKS), count), rng) for _ in range(rng.randint(1, 6))]
    text = rng.choice(["\n\n", "\n"]).join(blocks)
    assert missing(text) == [], text


@pytest.mark.parametrize("block", BLOCKS)
def test_every_word_is_there_of_each_kind_of_block(block: str) -> None:
    text = filled(block, itertools.count())
    assert missing(text) == [], text_html(text)


@pytest.mark.parametrize("levels", [9, 10, 19, 20, 39, 60, 500])
@pytest.mark.parametrize("marker", ["> ", "- ", "1. "])
def test_text_is_shown_however_deep_it_stands(levels: int, marker: str) -> None:
    assert "deep word" in visible(text_html(marker * levels + "deep word"))


def test_a_link_says_where_it_leads_and_a_block_of_code_what_it_is() -> None:
    html = text_html('[here](https://é.example/a%20b "now")\n\n```python run\nx\n```')
    assert '(https://é.example/a%20b "now")' in visible(html) and ">python run</p>" in html


def test_items_keep_their_own_numbers() -> None:
    assert visible(text_html("1. a\n2. b\n5. c")).split() == ["1.", "a", "2.", "b", "5.", "c"]
    assert visible(text_html("007) a")).split() == ["007)", "a"]


@pytest.mark.parametrize(
    "text", ["\u200b", "\u200b\u2060\n", "***", "#", "> ", "- ", "```\n```", "[](<>)", "\x07", "\u3164"]
)
def test_no_answer_that_holds_something_is_an_empty_box(text: str) -> None:
    assert visible(text_html(text)).strip()


def test_an_answer_of_white_space_says_how_much_of_it_there_is() -> None:
    assert visible(text_html("")) == "(empty answer)"
    assert visible(text_html("\n" * 12_000 + " ")) == "(empty answer: 12000 line breaks, 1 blank)"


def test_what_cannot_be_seen_is_marked_and_does_nothing_any_more() -> None:
    html = text_html("ab\u202ecd\u202c `x\u200by`\n\n```\n\u2066z\n```")
    assert not re.search("[\u200b\u202a-\u202e\u2066-\u2069]", html)
    assert re.findall(r'class="tu-mark"[^>]*>(\w+)<', html) == ["RLO", "PDF", "ZWSP", "LRI"]
    assert "ZWSP×500" in text_html("a" + "\u200b" * 500 + "b")
    for read in ("می\u200cخواهم", "👨\u200d👩\u200d👧", "❤\ufe0f", "क्\u200dष"):
        assert visible(text_html(read)).strip() == read, "joiners that shape what is read are no marks"


def test_indentation_blank_lines_and_wide_blanks_are_on_the_page() -> None:
    texts = ["if x:\n    go", "if x:\n  go", "if x:\n\tgo", "if x:\ngo", "  if x:\ngo", "if  x:\ngo", "if x:\n\n\ngo"]
    texts += ["\nif x:\ngo", "if x:\ngo\n\n", "if x:\n\ngo"]
    shown = [text_html(text) for text in texts]
    assert len(set(shown)) == len(texts)
    assert '<span class="tu-blanks">    </span>go' in shown[0] and 'title="2 blank lines"' in shown[6]


def test_each_block_has_a_direction_of_its_own() -> None:
    html = text_html("مرحبا\n\nhello\n\n- x\n\n> y\n\n# z\n\n```\nc\n```")
    for tag in ET.fromstring(f"<div>{html}</div>"):
        assert tag.get("dir") == "auto", tag.tag


def test_a_text_as_it_was_written_shows_the_blanks_at_the_ends_of_its_lines() -> None:
    assert visible(as_written("a  \nb\n\n")) == "a␣×2\nb↵×2\n"
    assert visible(as_written("a")) == "a\n" and visible(as_written("a\n")) == "a↵×1\n"
