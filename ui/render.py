"""Model text as HTML. Model output is untrusted: it may hold scripts, and images that tell a stranger who reads them.

Markdown is rendered on the server. Raw HTML in it is shown as the text that it is, links keep only harmless schemes,
and images become their description: no answer can make the browser load anything. LaTeX between $..$, $$..$$, \\(..\\)
and \\[..\\] becomes MathML, made anew from a list of allowed elements; what cannot be read as LaTeX stays as written.
"""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert_to_element
from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline

# ---- LaTeX ------------------------------------------------------------------------------------------------------

MAX_FORMULA = 2_000
"""Characters; a longer one is no formula, and would take long to read."""
MAX_LINES = 60

_ELEMENTS = frozenset(
    "math mrow mi mn mo mtext mspace mfrac msqrt mroot msub msup msubsup munder mover munderover mmultiscripts "
    "mprescripts none mtable mtr mtd mstyle mpadded mphantom menclose".split()
)
# Neither links, styles, classes nor colours: a formula can only look like a formula.
_ATTRIBUTES = {
    name: re.compile(pattern)
    for names, pattern in {
        "stretchy fence separator largeop movablelimits accent accentunder displaystyle": r"true|false",
        "form columnalign columnlines rowlines notation linebreak": r"[a-z ]{1,60}",
        "scriptlevel": r"[+-]?\d",
        "linethickness minsize maxsize lspace rspace width height depth voffset columnspacing rowspacing": (
            r"(?:[+-]?\d{0,2}(?:\.\d{1,4})?(?:em|ex|px|pt|%)?(?: |$)){1,9}"
        ),
    }.items()
    for name in names.split()
}
_ENVIRONMENTS = {"aligned": "align*", "align": "align*", "gathered": "matrix", "dcases": "cases"}
_ENVIRONMENT = re.compile(rf"\\(begin|end)\{{({'|'.join(_ENVIRONMENTS)})\}}")


def mathml(latex: str, display: bool = False) -> str | None:
    """A formula as MathML; None if it is none that can be shown whole."""
    if not latex.strip() or len(latex) > MAX_FORMULA or not _balanced(latex):
        return None
    known = _ENVIRONMENT.sub(lambda found: rf"\{found[1]}{{{_ENVIRONMENTS[found[2]]}}}", latex)
    try:
        return _markup(convert_to_element(known, display="block" if display else "inline"), display)
    except Exception:  # _Unknown, or what the parser raises on a stranger's text: RecursionError, IndexError, ...
        return None


class _Unknown(Exception):
    """An element, or a command, that is not known."""


def _markup(node: Element, display: bool) -> str:
    """The element anew: its text may hold markup that the converter left as it found it."""
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
    # A price is no formula: "$5 and $10" has a blank before its second sign, "$5-$10" a digit after it.
    (re.compile(r"\$(?![\s$])((?:[^$\\`]|\\.)+)(?<!\s)\$(?![\d$])", re.DOTALL), False),
    (re.compile(rf"\\\((.{_WITHIN})\\\)", re.DOTALL), False),
    (re.compile(rf"\\\[(.{_WITHIN})\\\]", re.DOTALL), True),
]
_CLOSING = {"$$": "$$", "\\[": "\\]"}


def _math_inline(state: StateInline, silent: bool) -> bool:
    if state.src[state.pos] not in "$\\":
        return False
    for pattern, display in _INLINE:
        if found := pattern.match(state.src, state.pos, state.posMax):
            if not silent:
                _push(state, found[0], found[1], display)
            state.pos = found.end()
            return True
    return False


def _math_block(state: StateBlock, first: int, end: int, silent: bool) -> bool:
    """A formula on lines of its own, so that a line of it which begins with - or = is no list and no heading."""
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
                _push(state, source, source[2:-2], True)
                state.line = line + 1
            return True
    return False


def _push(state: Any, source: str, latex: str, display: bool) -> None:
    token = state.push("math", "", 0)
    token.content, token.markup, token.meta = latex, source, {"display": display}


def _render_math(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    token = tokens[index]
    found = mathml(token.content, token.meta["display"])
    return found or f'<code class="tu-tex">{escape(token.markup)}</code>'


# ---- Markdown ---------------------------------------------------------------------------------------------------


def _open_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(renderer.renderToken(tokens, index, options, env))


_markdown = (
    MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
)
_markdown.inline.ruler.before("escape", "math", _math_inline)
_markdown.block.ruler.before("fence", "math", _math_block, {"alt": ["paragraph", "reference", "blockquote", "list"]})
_markdown.add_render_rule("math", _render_math)
_markdown.add_render_rule("link_open", _open_link)


def text_html(text: str) -> str:
    """Markdown as HTML; an empty answer says so."""
    if not text.strip():
        return '<p class="tu-empty">(empty answer)</p>'
    return str(_markdown.render(text.strip("\n")))


def conversation_html(messages: list[Any]) -> str:
    """The turns of a prompt, each with who speaks."""
    speakers = {"system": "Instructions", "user": "Person", "assistant": "Assistant"}
    if len(messages) == 1:
        return f'<div class="tu-turn tu-user">{text_html(messages[0].content)}</div>'
    return "".join(
        f'<div class="tu-turn tu-{message.role}"><span class="tu-who">{escape(speakers[message.role])}</span>'
        f"{text_html(message.content)}</div>"
        for message in messages
    )
