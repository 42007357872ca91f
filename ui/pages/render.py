"""Model text as HTML. Model output is untrusted: it may contain scripts, and images that reveal who reads them.

The server renders Markdown. Raw HTML in it appears as text, links keep only harmless schemes, and images become their
description: no answer can make the browser load anything. LaTeX between $..$, $$..$$, \\(..\\) and \\[..\\] becomes
MathML, built from a list of allowed elements; text that cannot be read as LaTeX stays as written.

People judge all of the text: the target of a link, the language of a code block, the number of a list's item,
indentation, blank lines and invisible characters are all on the page. A comparison of the page with the text finds
anything else that Markdown drops, and such a text is shown as it was written.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from html import escape, unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline, link
from markdown_it.token import Token

from trueup.data.visible import INVISIBLE, seen

# ---- LaTeX ------------------------------------------------------------------------------------------------------

MAX_FORMULA = 2_000
"""Most characters of a formula; a longer text would take long to parse."""
MAX_LINES = 60

_ELEMENTS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mmultiscripts "
    "mprescripts none mtable mtr mtd mstyle menclose".split()
)
# No links, styles, classes or colours, so that a formula can only look like a formula. Nothing that hides a part of it:
# phantoms, boxes of another size than their content, negative spaces.
_ATTRIBUTES = {
    name: re.compile(pattern)
    for names, pattern in {
        "stretchy fence separator largeop movablelimits accent accentunder displaystyle": r"true|false",
        "form columnalign columnlines rowlines notation linebreak": r"[a-z ]{1,60}",
        "scriptlevel": r"[+-]?\d",
        "linethickness minsize maxsize lspace rspace width height depth voffset columnspacing rowspacing": (
            r"(?:\+?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt|%)?(?: |$)){1,9}"
        ),
    }.items()
    for name in names.split()
}
_ENVIRONMENTS = {"aligned": "align*", "align": "align*", "gathered": "matrix", "dcases": "cases"}
_ENVIRONMENT = re.compile(rf"\\(begin|end)\{{({'|'.join(_ENVIRONMENTS)})\}}")


def mathml(latex: str, display: bool = False) -> str | None:
    """A formula as MathML; None if it cannot be shown whole."""
    if not latex.strip() or len(latex) > MAX_FORMULA or not _balanced(latex):
        return None
    formula = _ENVIRONMENT.sub(lambda match: rf"\{match[1]}{{{_ENVIRONMENTS[match[2]]}}}", latex)
    try:
        markup = _markup(convert_to_element(formula, display="block" if display else "inline"), display)
        return markup if _says_all(latex, markup) else None
    except Exception:  # _Unknown, or what the parser raises on a stranger's text: RecursionError, IndexError, ...
        return None


class _Unknown(Exception):
    """An unknown element or command."""


def _markup(node: Element, display: bool) -> str:
    """The element built anew, since its text may contain markup that the converter left unchanged."""
    if node.tag not in _ELEMENTS:
        raise _Unknown(node.tag)
    text = unescape(node.text or "")
    if re.match(r"\\[A-Za-z]", text) or (text == "&" and node.tag == "mi"):
        raise _Unknown(text)
    attributes = "".join(
        f' {name}="{value}"'
        for name, value in node.attrib.items()
        if name in _ATTRIBUTES and _ATTRIBUTES[name].fullmatch(value)
    )
    if node.tag == "math" and display:
        attributes = ' display="block"'
    inner = escape(text) + "".join(_markup(child, display) for child in node)
    return f"<{node.tag}{attributes}>{inner}</{node.tag}>"


_TAG = re.compile(r"<[^<>]*>")
_UNSAID = re.compile(
    r"\\(?:begin|end)\{[A-Za-z]{1,20}\*?\}(?:\{[lcr|@ ]{1,20}\})?"  # an environment, with an array's columns
    r"|\\\\\[-?[\d.]{1,6} ?(?:em|ex|pt|mm|cm)\]|\\hspace\*?\{\d{0,2}[\d.]{0,5} ?(?:em|ex|pt|mu)\}"  # a space
    r"|\\[A-Za-z]+"  # a command
)


def _says_all(latex: str, markup: str) -> bool:
    """Whether the markup has each letter and digit of a formula outside of commands, in any order."""
    visible = unicodedata.normalize("NFKC", unescape(_TAG.sub("", markup)))
    expected = unicodedata.normalize("NFKC", _UNSAID.sub(" ", latex))
    return not Counter(filter(str.isalnum, expected)) - Counter(filter(str.isalnum, visible))


def _balanced(latex: str) -> bool:
    depth = 0
    for brace in re.findall(r"\\.|[{}]", latex, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


# ---- LaTeX in Markdown ------------------------------------------------------------------------------------------

_WITHIN = rf"{{1,{MAX_FORMULA}}}?"
_INLINE = [  # (pattern, display)
    (re.compile(rf"\$\$((?:[^$\\]|\\.|\$(?!\$)){_WITHIN})\$\$", re.DOTALL), True),
    # Prices are no formulas: "$5 and $10" has a blank before its second sign, "$5-$10" a digit after it.
    (re.compile(r"\$(?![\s$])((?:[^$\\`]|\\.)+)(?<!\s)\$(?![\d$])", re.DOTALL), False),
    (re.compile(rf"\\\((.{_WITHIN})\\\)", re.DOTALL), False),
    (re.compile(rf"\\\[(.{_WITHIN})\\\]", re.DOTALL), True),
]
_CLOSING = {"$$": "$$", "\\[": "\\]"}


def _math_inline(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    for pattern, display in _INLINE:
        if match := pattern.match(state.src, state.pos, state.posMax):
            if not silent:
                _push(state, match[0], match[1], display)
            state.pos = match.end()
            return True
    return False


def _math_block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A formula on lines of its own, so that a line in it that begins with - or = is no list and no heading."""
    begin = state.bMarks[first] + state.tShift[first]
    closing = _CLOSING.get(state.src[begin : begin + 2])
    if closing is None or state.is_code_block(first):
        return False
    for line in range(first, min(end, first + MAX_LINES)):
        if line > first and (state.isEmpty(line) or state.sCount[line] < state.blkIndent):
            return False
        at = state.src.find(closing, begin + 2 if line == first else state.bMarks[line], state.eMarks[line])
        if at >= 0:
            if state.src[at + 2 : state.eMarks[line]].strip():
                return False
            if not silent:
                source = state.getLines(first, line + 1, state.blkIndent, False).strip()
                _push(state, source, source[2:-2], True).map = [first, line + 1]
                state.line = line + 1
            return True
    return False


def _push(state: Any, source: str, latex: str, display: bool) -> Token:
    token: Token = state.push("math", "", 0)
    token.content, token.markup, token.meta = latex, source, {"display": display}
    return token


def _render_math(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    markup = mathml(token.content, token.meta["display"])
    if markup is None:
        return f'<code class="tu-tex">{seen(token.markup)}</code>'
    env["formulas"].append(token.markup)
    return markup


# ---- Markdown ---------------------------------------------------------------------------------------------------

MAX_MARKDOWN = 50_000
"""Most characters of Markdown; a longer text is shown as it was written."""
NESTED = 40
"""Most levels of lists and quotes (a list takes two). A text with more is shown as it was written."""

MAX_CELLS = 20_000
"""Most cells of a table: with more, the page would be many times the size of the text."""
RETURN, TIMES = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\N{MULTIPLICATION SIGN}"
OPEN_BOX = "\N{OPEN BOX}"


def _open_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(renderer.renderToken(tokens, index, options, env))


def _link(state: StateInline, silent: bool) -> bool:
    """A link with its target, as it was written, after its words."""
    start = state.pos
    if not link(state, silent):
        return False
    if not silent:
        label_end = state.md.helpers.parseLinkLabel(state, start, True)
        state.tokens[-1].meta = {"target": state.src[label_end + 1 : state.pos]}
    return True


def _close_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    target = tokens[index].meta.get("target")
    return f'</a> <span class="tu-target" dir="ltr">{seen(target)}</span>' if target else "</a>"


def _newline(state: StateInline, silent: bool) -> bool:
    """A line break that keeps the indentation of the next line, which has a meaning in code."""
    if state.src[state.pos] != "\n":
        return False
    end = state.pos + 1
    while end < state.posMax and state.src[end] in " \t":
        end += 1
    if not silent:
        state.pending = state.pending.rstrip(" ")
        state.push("softbreak", "br", 0)
        if end > state.pos + 1:
            state.push("blanks", "", 0).content = state.src[state.pos + 1 : end]
    state.pos = end
    return True


def _spaces(state: StateCore) -> None:
    """Blank lines beyond one, and the indentation of a first line, as tokens of their own; each block's direction."""
    lines = state.src.split("\n")
    tokens: list[Token] = []
    for token, following in zip(state.tokens, [*state.tokens[1:], None], strict=True):
        if token.level == 0 and token.nesting >= 0 and token.map:
            token.attrSet("dir", "auto")
            start = token.map[0]
            tokens += _blank_lines(lines, start, least=2 if tokens else 1)
            indent = lines[start][: len(lines[start]) - len(lines[start].lstrip(" "))]
            if token.type == "paragraph_open" and indent and following is not None:
                following.children = [_blanks(indent), *(following.children or [])]
        tokens.append(token)
    state.tokens = tokens + (_blank_lines(lines, len(lines), least=2) if tokens else [])


def _blank_lines(lines: list[str], end: int, least: int) -> list[Token]:
    """A token with the number of blank lines before line `end`; none if they are fewer than `least`."""
    start = end
    while start and not lines[start - 1].strip():
        start -= 1
    return [Token("blank_lines", "p", 0, content=str(end - start))] if end - start >= least else []


def _blanks(text: str) -> Token:
    return Token("blanks", "", 0, content=text)


_WIDE = re.compile(r" {2,}|\t[ \t]*")


def _render_text(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """Text, in which several blanks stay several."""
    return _WIDE.sub(lambda match: f'<span class="tu-blanks">{match[0]}</span>', seen(tokens[index].content))


def _render_blanks(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return f'<span class="tu-blanks">{escape(tokens[index].content)}</span>'


def _render_blank_lines(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    number = tokens[index].content
    return f'<p class="tu-blank" title="{_many(int(number), "blank line")}">{RETURN}{TIMES}{number}</p>\n'


def _render_item(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """An item with its own number: a list that counts 1, 2, 5 is shown so."""
    number = tokens[index].info
    return f'<li><span class="tu-number">{number}{tokens[index].markup}</span> ' if number else "<li>"


def _render_code(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    return f"<code>{seen(tokens[index].content)}</code>"


def _render_block(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    """A block of code, below the label of its fence."""
    info = tokens[index].info.strip()
    label = f'<p class="tu-lang" dir="auto">{seen(info)}</p>\n' if info else ""
    return f'{label}<pre dir="auto"><code>{seen(tokens[index].content)}</code></pre>\n'


def _reader(*more: str) -> MarkdownIt:
    """Markdown without features that drop text: reference definitions of links, images, and names of characters."""
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": NESTED})
    markdown.enable(["strikethrough", *more]).disable(["image", "entity", "reference"])
    markdown.inline.ruler.at("newline", _newline)
    markdown.inline.ruler.at("link", _link)
    markdown.inline.ruler.before("escape", "math", _math_inline)
    markdown.block.ruler.before("fence", "math", _math_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    markdown.core.ruler.push("spaces", _spaces)
    markdown.normalizeLinkText = str  # type: ignore[method-assign,assignment]
    rules = {"math": _render_math, "link_open": _open_link, "link_close": _close_link, "text": _render_text}
    rules |= {"blanks": _render_blanks, "blank_lines": _render_blank_lines, "list_item_open": _render_item}
    rules |= {"code_inline": _render_code, "code_block": _render_block, "fence": _render_block}
    for name, rule in rules.items():
        markdown.add_render_rule(name, rule)
    return markdown


# Markdown drops the cells of a table's row beyond its head; a text with such a row is rendered without tables.
_READERS = (_reader("table"), _reader())


def text_html(text: str) -> str:
    """Markdown as HTML with all of the text; an empty answer is marked as such."""
    if not text.strip():
        what = f": {_counted(text)}" if text else ""
        return f'<p class="tu-empty">(empty answer{what})</p>'
    if len(text) <= MAX_MARKDOWN:
        expected = _substance(text)
        for reader in _READERS if _cells(text) <= MAX_CELLS else _READERS[1:]:
            try:
                env: dict[str, Any] = {"formulas": []}
                html = str(reader.render(text, env))
            except RecursionError:
                break
            visible = _read(html, env["formulas"])
            if _substance(visible) == expected and visible.strip():
                return html
    return as_written(text)


def as_written(text: str) -> str:
    """A text as it was written, with marks for blanks at the end of a line and for empty lines at its end."""
    *lines, last = text.split("\n")
    while not last.strip() and lines:
        last = lines.pop()
    empty = text.count("\n") - len(lines)
    body = "\n".join(map(_line, [*lines, last]))
    return f'<pre class="tu-plain" dir="auto">{body}{_breaks(empty) if empty else ""}</pre>\n'


def _line(line: str) -> str:
    text = line.rstrip(" \t")
    blanks = len(line) - len(text)
    ends = f"{OPEN_BOX}{TIMES}{blanks}" if blanks > 1 else OPEN_BOX
    mark = f'<span class="tu-mark" title="{_many(blanks, "blank")}">{ends}</span>' if blanks else ""
    return f"{seen(text)}{mark}"


def _breaks(number: int) -> str:
    return f'<span class="tu-mark" title="{_many(number, "line break")}">{RETURN}{TIMES}{number}</span>'


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _cells(text: str) -> int:
    """Upper bound of the cells in a text's tables: each of its lines as wide as the widest."""
    return (text.count("\n") + 1) * max(line.count("|") for line in text.split("\n"))


def _counted(text: str) -> str:
    """The number of line breaks and of blanks in a text of white space."""
    breaks, others = text.count("\n"), len(text) - text.count("\n")
    return ", ".join(_many(number, name) for number, name in [(breaks, "line break"), (others, "blank")] if number)


_ADDED = re.compile(
    r'<span class="tu-mark".*?</span>|<p class="tu-blank".*?</p>|(?P<math><math.*?</math>)|<[^<>]*>', re.DOTALL
)


def _read(html: str, formulas: list[str]) -> str:
    """The visible text of the page, with each formula as it was written and without the page's own additions."""
    sources = iter(formulas)
    return unescape(_ADDED.sub(lambda match: escape(next(sources)) if match["math"] else "", html))


def _substance(text: str) -> str:
    """The characters of a text that are no markup: all but white space, ASCII punctuation and invisible ones."""
    return "".join(filter(_is_substance, INVISIBLE.sub("", text)))


def _is_substance(character: str) -> bool:
    return character.isalnum() if character.isascii() else not (character.isspace() or character == "\ufffd")


def conversation_html(messages: list[Any]) -> str:
    """The turns of a prompt, each with its speaker."""
    speakers = {"system": "Instructions", "user": "Person", "assistant": "Assistant"}
    if len(messages) == 1:
        return f'<div class="tu-turn tu-user">{text_html(messages[0].content)}</div>'
    return "".join(
        f'<div class="tu-turn tu-{message.role}"><span class="tu-who" dir="ltr">{speakers[message.role]}</span>'
        f"{text_html(message.content)}</div>"
        for message in messages
    )
