"""`trueup labels stats CONFIG`: the admin page's tables as plain text."""

from __future__ import annotations

from pathlib import Path

from trueup.errors import DataError
from ui.figures.live import Live
from ui.figures.tables import as_text, sheets
from ui.labels.config import LabelConfig
from ui.labels.tables import Database


def stats(config: LabelConfig) -> str:
    """All tables that have rows, and the findings for the admin, from the campaign's label store."""
    url = config.store_url
    if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
        raise DataError(f"{url.database}: there is no label store yet; `trueup label` creates it")
    store = Database(config.store_url)
    try:
        figures = Live(store, config.run_dir).figures(wait=True)
    finally:
        store.close()
    looks = [f"  {one['annotator'] or ''} {one['message']}".rstrip() for one in figures["findings"]]
    parts = ["\n".join(["Worth a look", *looks])] if looks else []
    tables = sheets(figures).values()
    return "\n\n".join([*parts, *(as_text(sheet) for sheet in tables if sheet.rows)])
