"""What a piece of Python means: its code, and all of the project's that it uses, without comments and layout."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def digest(file: Path, name: str) -> str | None:
    """Hash of what a name stands for in a file; None where the file cannot be read as Python.

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
    """Add the code of a name, and of all that it uses, to `parts`; a name of Python or a library adds nothing."""
    nodes = _definitions(file.read_text(encoding="utf-8")).get(name, [])
    if not nodes or (file, name) in parts:
        return
    parts[file, name] = ""  # it may use itself
    used: list[tuple[Path, str]] = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            origin = _file_of(node.module or "")
            original = next(alias.name for alias in node.names if name in (alias.asname, alias.name))
            used += [(origin, original)] if origin else []
        else:
            parts[file, name] += ast.unparse(node) + "\n"
            used += [(file, other.id) for other in ast.walk(node) if isinstance(other, ast.Name)]
    for other_file, other in used:
        _collect(other_file, other, parts)


@functools.lru_cache(maxsize=32)
def _definitions(text: str) -> dict[str, list[ast.stmt]]:
    """By name, the bare statements at the top of a file that give it its meaning."""
    found: dict[str, list[ast.stmt]] = {}
    for node in _Bare().visit(ast.parse(text)).body:
        for name in _names(node):
            found.setdefault(name, []).append(node)
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else getattr(node, "targets", [])
    return [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]


def _file_of(module: str) -> Path | None:
    """The file of a module of Trueup's; None for any other."""
    spec = importlib.util.find_spec(module) if module.partition(".")[0] == ROOT.name else None
    return Path(spec.origin) if spec and spec.origin else None


class _Bare(ast.NodeTransformer):
    """Takes away what changes no result: docstrings and other bare strings, and annotations."""

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
