"""The pages of this server: templates that escape every value, under the policy of the plain pages.

    ui/pages/templates/page.html.jinja   the frame of every plain page; a page extends it, and sets `title`
    a page that sets `narrow`            is as wide as a form; one that sets `styles` has these further style sheets
    signed_in.html.jinja                 the person and the link to sign out, included if `me` is the person

Values that are HTML already are `Markup`: a drawing, or the result of `render`.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from fastapi.responses import HTMLResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trueup.pages.wording import plot_style

STATIC = Path(__file__).parent / "static"
_TEMPLATES = Path(__file__).parent / "pages" / "templates"
_DARK = "matchMedia('(prefers-color-scheme: dark)').matches && document.body.classList.add('dark')"
_DARK_HASH = base64.b64encode(hashlib.sha256(_DARK.encode()).digest()).decode()
PLAIN_POLICY = (
    f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_DARK_HASH}'; img-src 'self'; "
    "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
"""Content-Security-Policy of the plain pages. Their one line of script follows the system's dark mode."""


@cache
def environment() -> Environment:
    """The templates of this package. A missing value is an error."""
    templates = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(style=style, dark=Markup(_DARK))
    templates.filters.update(sentence=sentence)
    return templates


def render(template: str, **values: Any) -> Markup:
    """The HTML of `template`.html.jinja with these values, each of them escaped."""
    return Markup(environment().get_template(f"{template}.html.jinja").render(**values))


@cache
def style(*names: str) -> Markup:
    """The text of these style sheets, for a page. `plots.css` is that of the pictures, which the reports have too."""
    texts = (plot_style() if name == "plots.css" else (STATIC / name).read_text(encoding="utf-8") for name in names)
    return Markup("\n".join(texts))


def sentence(text: str) -> str:
    """An error's text as a sentence of a page."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def plain_page(template: str, status: int = 200, retry_after_s: int | None = None, **values: Any) -> HTMLResponse:
    """A plain page as a response: its policy forbids other scripts, and browsers keep no copy."""
    headers = {"Content-Security-Policy": PLAIN_POLICY, "Cache-Control": "no-store"}
    if retry_after_s is not None:
        headers["Retry-After"] = str(retry_after_s)
    return HTMLResponse(render(template, **values), status, headers)


def message_page(title: str, text: str, status: int, link: tuple[str, str] | None = None) -> HTMLResponse:
    """A page with one message and a link to continue: `link` is an address and its text."""
    return plain_page("message", status, title=title, text=text, link=link)


def not_found() -> HTMLResponse:
    """The page for an unknown address."""
    return message_page("Not found", "There is no such page here.", 404, ("/", "All pages"))
