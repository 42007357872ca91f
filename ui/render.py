"""Model text as HTML. Model output is untrusted: it may hold scripts, and images that tell a stranger who reads them.

Markdown is rendered on the server. Raw HTML in it is shown as the text that it is, links keep only harmless schemes,
and images become their description: no answer can make the browser load anything.
"""

from __future__ import annotations

from html import escape
from typing import Any

from markdown_it import MarkdownIt

_markdown = (
    MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"]).disable("image")
)


def _open_link(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("target", "_blank")
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    return str(renderer.renderToken(tokens, index, options, env))


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
