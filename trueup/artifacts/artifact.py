"""The base of the JSON files that stages leave. Each file has one schema, which builds, writes and reads it.

A stage's schema stands beside its config (`sft/report.py`, `reward/report.py`, ...). The part of a report that another
package reads is a base of that schema in `trueup.artifacts.reports`, since packages never import each other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trueup.errors import RunError
from trueup.files import Json, require_file


class Artifact(BaseModel):
    """A JSON file that a stage leaves, or a part of one. Unknown keys are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), use_attribute_docstrings=True)

    def plain(self) -> Json:
        """The artifact as plain data, in the order of the fields."""
        return self.model_dump(mode="json")

    def text(self) -> str:
        """The text of the file."""
        return json.dumps(self.plain(), indent=2, ensure_ascii=False) + "\n"


def absent() -> Any:
    """The default of a key that is left out of the file if it has no value."""
    return Field(None, exclude_if=lambda value: value is None)


A = TypeVar("A", bound=Artifact)


def read_artifact(path: Path, schema: type[A], what: str, remedy: str) -> A | None:
    """The file as its schema; None if there is no such file; a RunError that names file and key if it is wrong.

    what    what the file should be, such as `a manifest`
    remedy  what the user should do about a wrong file
    """
    try:
        require_file(path)
        return schema.model_validate_json(path.read_bytes(), strict=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            raise RunError(f"{path}: not JSON ({first['ctx']['error']}); {remedy}") from None
        key = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise RunError(f"{path}: not {what} ({key}: {first['msg']}); {remedy}") from None
