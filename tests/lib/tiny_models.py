"""Copies of tiny bases with a chat template of their own, as somebody publishes a model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path


def with_own_template(base: Path, folder: Path, template: str) -> Path:
    """A copy of a base in `folder` that brings this chat template."""
    shutil.copytree(base, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder
