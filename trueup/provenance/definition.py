"""A hash of what Python code does: its statements, and all of Trueup's that it uses, without comments and layout."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def digest(file: Path, name: str) -> str | None:
    """Hash of a name's definition in a file; None if the file cannot be read as Python.

    The hash covers the statement that defines the name, and in turn every name of the same file, or imported from
    Trueup, that it uses. Comments, docstrings, annotations and layout do not count: they change no result.
    """
    parts: dict[tuple[Path, str], str] = {}
    try:
        _collect(file, name, parts)
    except (OSError, SyntaxError, ValueError):
        return None
    return hashlib.sha256("\n\n".join(parts.values()).encode()).hexdigest()[:12]


def _collect(file: Path, name: str, parts: dict[tuple[Path, str], str]) -> None:
    """Add the code of a name, and of all names that it uses, to `parts`. Python's and libraries' names add nothing."""
    nodes = _definitions(file.read_text(encoding="utf-8")).get(name, [])
    if not nodes or (file, name) in parts:
        return
    parts[file, name] = ""  # it may use itself
    names: list[tuple[Path, str]] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            origin = _file_of(node.module or "")
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            names += [(origin, original)] if origin else []
        else:
            parts[file, name] += ast.unparse(node) + "\n"
            names += [(file, other.id) for other in ast.walk(node) if isinstance(other, ast.Name)]
    for other_file, other in names:
        _collect(other_file, other, parts)


@functools.lru_cache(maxsize=32)
def _definitions(text: str) -> dict[str, list[ast.stmt]]:
    """The bare top-level statements of a file that define each name."""
    definitions: dict[str, list[ast.stmt]] = {}
    for node in _Bare().visit(ast.parse(text)).body:
        for name in _names(node):
            definitions.setdefault(name, []).append(node)
    return definitions


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else getattr(node, "targets", [])
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _file_of(module: str) -> Path | None:
    """The file of a module of Trueup; None for any other module."""
    spec = importlib.util.find_spec(module) if module.partition(".")[0] == ROOT.name else None
    return Path(spec.origin) if spec and spec.origin else None


class _Bare(ast.NodeTransformer):
    """Removes what changes no result: docstrings and other bare strings, and annotations."""

    def visit_Expr(self, node: ast.Expr) -> Any:
        is_text = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return ast.copy_location(ast.Pass(), node) if is_text else self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> Any:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)
