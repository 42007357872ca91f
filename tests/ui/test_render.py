"""Model text as HTML: readable, and harmless whatever it holds."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from ui.render import MAX_FORMULA, mathml, text_html


def visible(html: str) -> str:
    """What a reader sees of well-formed HTML."""
    return "".join(ET.fromstring(f"<div>{html}</div>").itertext())


def test_markdown_is_rendered_and_html_stays_text() -> None:
    assert text_html("**bold**\nnew line") == "<p><strong>bold</strong><br />\nnew line</p>\n"
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
    assert "<li>" not in html and "<h1>" not in html and html.count("<math") == 1 and "<p>after</p>" in html
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
