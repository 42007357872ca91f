"""The role that each path needs. A path that is not listed here is refused, so a new route stays closed until it is
listed. Gradio's own routes are under the same rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

Needs = Literal["nobody", "annotator", "admin"]

_OPEN = ("/login", "/invite", "/enter", "/favicon.ico")
_BLIND = ("/label", "/vote")
_MOUNTED = (*_BLIND, "/open", "/admin", "/compare")
_FORMS = ("/login", "/invite", "/logout", "/password", "/people")
_ANNOTATORS = (*_BLIND, "/static", "/logout", "/password", "/api/v1")
_ADMIN_API = ("/api/v1/admin", "/api/v1/open")

_GRADIO_READS = (
    "",
    "/",
    "/theme.css",
    "/assets/*",
    "/static/js/iframeResizer.contentWindow.min.js",
    "/gradio_api/heartbeat/*",
)
_GRADIO_WRITES = ("/gradio_api/run/predict",)
"""The routes of Gradio that the pages load, below the path of each page. Its other routes fetch addresses, serve files,
take uploads and reveal what runs."""


def needs(path: str) -> Needs:
    """The role that this path needs. Results, reports and all paths that are not listed are for admins, because an
    annotator who knows the win rate does not label blind."""
    if _within(path, _OPEN):
        return "nobody"
    if path == "/" or (_within(path, _ANNOTATORS) and not _within(path, _ADMIN_API)):
        return "annotator"
    return "admin"


def is_named(method: str, path: str) -> bool:
    """Whether a path below a mounted Gradio application is one that its page loads. True for all other paths."""
    root = next((root for root in _MOUNTED if _within(path, (root,))), None)
    if root is None:
        return True
    below = path.removeprefix(root)
    if method in ("GET", "HEAD"):
        return any(_fits(below, pattern) for pattern in _GRADIO_READS)
    return method == "POST" and root not in _BLIND and below in _GRADIO_WRITES


def is_blind(path: str) -> bool:
    """Whether the path belongs to a page of blind judgements."""
    return _within(path, _BLIND)


def takes_form(path: str) -> bool:
    """Whether this path takes a form: the plain pages, and all paths to which a stranger may write."""
    return _within(path, _FORMS) or needs(path) == "nobody"


def _fits(below: str, pattern: str) -> bool:
    """Whether a path fits a pattern. A star matches plain names of files: no address, no parent folder."""
    if not pattern.endswith("*"):
        return below == pattern
    rest = below.removeprefix(pattern[:-1])
    return rest != below and all(_PLAIN.fullmatch(part) for part in rest.split("/"))


_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def _within(path: str, roots: Iterable[str]) -> bool:
    return any(path == root or path.startswith(f"{root}/") for root in roots)
