"""Python of the user's own: a key names it as `file.py:name`, with the file relative to the campaign file."""

from __future__ import annotations

import functools
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import SerializationInfo, ValidationInfo

from trueup.config import from_campaign
from trueup.errors import DataError, TrueupError

_OWN = re.compile(r".+\.py:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Whether a name is of the form `file.py:name`."""
    return _OWN.fullmatch(name) is not None


def file_of(name: str) -> Path:
    """The file of `file.py:name`."""
    return Path(name.rpartition(":")[0])


def short_name(name: str) -> str:
    """The name without the file's folder, which tells the reader of a report nothing."""
    return Path(name).name


def from_base(name: Any, info: ValidationInfo) -> Any:
    """A name as it is written in a campaign file, with its file as a path."""
    return str(from_campaign(name, info)) if isinstance(name, str) and is_own(name) else name


def in_identity(name: str, info: SerializationInfo) -> str:
    """In an identity the file's folder does not count: the manifest knows the file by its hash."""
    return short_name(name) if info.context and info.context.get("identity") else name


def load_own(name: str, prefix: str) -> Any:
    """The object that `file.py:name` stands for; a DataError, which starts with `prefix`, where there is none."""
    path = file_of(name)
    if not path.is_file():
        raise DataError(f"{prefix}{name}: {path}: no such file")
    spec = importlib.util.spec_from_file_location(f"trueup_own_{path.stem}", path)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up their module there
    try:
        # By its text: an import keeps a compiled copy beside the file, and takes it for the file even after a change if
        # second and length are still the same.
        exec(compile(path.read_bytes(), path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        raise DataError(f"{prefix}{name}: {_where(error, path)}: {type(error).__name__}: {error}") from error
    attribute = name.rpartition(":")[2]
    if not hasattr(module, attribute):
        raise DataError(f"{prefix}{name}: {path} has no function {attribute}")
    return getattr(module, attribute)


def error_boundary(function: Callable[..., Any], name: str, prefix: str) -> Callable[..., Any]:
    """The user's function, whose errors become a DataError that names it, the line of its file, and what it raised.

    name  the `file.py:name` that it came with
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TrueupError:
            raise
        except Exception as error:
            where = _where(error, file_of(name))
            raise DataError(f"{prefix}{short_name(name)}: {where}: {type(error).__name__}: {error}") from error

    return call


def _where(error: BaseException, path: Path) -> str:
    """File, and the line of it that failed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"{path}:{lines[-1]}" if lines else str(path)
