"""Our use of Gradio: making a page and mounting it. Other modules import Gradio from here.

Two things happen before `import gradio`. Its checks for new versions and its usage counts are turned off. And its stubs
are left out: on each import, Gradio's component classes parse their own sources and write them as type stubs into the
installed package. That is for developers of Gradio; it takes half of the import, and two servers that start at once
write the same files. Nothing at run time reads the stubs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

from fastapi import FastAPI, Request

from ui.html import STATIC, style

__all__ = ["gr", "mount", "one_component", "scripted"]

MODULE, WRITER = "gradio.component_meta", "create_or_modify_pyi"


class _WithoutStubs(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            if hasattr(module, WRITER):  # private, so it may be gone; then nothing is saved and nothing is broken
                setattr(module, WRITER, lambda *_: None)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if MODULE not in sys.modules:
    sys.meta_path.insert(0, _WithoutStubs())

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr  # noqa: E402  after what it has to find

_FONT = ["ui-sans-serif", "system-ui", "sans-serif"]
_MONO = ["ui-monospace", "monospace"]


def one_component(title: str, html: str, script: str) -> gr.Blocks:
    """A page of one component without a value. Its content comes from the API, so it is never in the /config."""
    with gr.Blocks(analytics_enabled=False, title=f"{title} · Trueup", fill_width=True) as blocks:
        gr.HTML(html_template=html, js_on_load=script, apply_default_css=False)
    return blocks


def scripted(name: str, title: str, under: str = "") -> gr.Blocks:
    """The page of static/NAME.html, started by static/NAME.js, whose API is `under` /api/v1/."""
    html = (STATIC / f"{name}.html").read_text(encoding="utf-8")
    return one_component(title, html, f'import("/static/{name}.js").then((page) => page.start(element, "{under}"))')


def mount(
    app: FastAPI, blocks: gr.Blocks, path: str, styles: Sequence[str], who: Callable[[Request], str | None]
) -> None:
    """Serve the page at `path` in the look of the others; `who` is Gradio's own check, behind the guard's."""
    theme = gr.themes.Base(font=_FONT, font_mono=_MONO, primary_hue="blue", neutral_hue="stone")
    gr.mount_gradio_app(
        app,
        blocks,
        path,
        auth_dependency=who,
        theme=theme,
        css=str(style("trueup.css", *styles)),
        run_history=False,
        footer_links=[],
        ssr_mode=False,
        show_error=False,
        pwa=False,
        enable_monitoring=False,
        mcp_server=False,
    )
