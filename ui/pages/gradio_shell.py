"""Makes `import gradio` a second quicker: importing this module is enough, if it comes before gradio.

Whenever Gradio is imported, its component classes read their own sources, parse them and write them out again as type
stubs into the installed package. That is for people who develop Gradio; it takes half of the import, and two servers
that start at once write the same files. Nothing at run time reads the stubs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

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
