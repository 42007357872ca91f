"""HTTP API of the admin's page, `/api/v1/admin`: every handler checks the role itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import sqlalchemy as sa
from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import HTMLResponse, Response

from ui.figures.live import Live
from ui.figures.log import newest_event
from ui.figures.tables import as_csv, sheets
from ui.labels.tables import event
from ui.pages.admin import summary_html
from ui.people.accounts import Admin

PAGE = 1_000


News = Callable[[], str | None]
"""What an admin has to know of the work beside the labelling page, in a sentence; None: nothing."""


def admin_api(live: Live, news: News | None = None) -> APIRouter:
    """The routes over the statistics of a store. They are plain functions, which run on threads, since they compute."""
    router = APIRouter(prefix="/api/v1/admin", tags=["admin"])

    @router.get("/summary")
    def summary(who: Admin) -> dict[str, Any]:
        """All figures, with intervals; shares are between 0 and 1."""
        return dict(live.figures())

    @router.get("/summary.html", response_class=HTMLResponse)
    def summary_page(who: Admin) -> HTMLResponse:
        """The figures as a piece of HTML, for the page."""
        html = summary_html(live.figures(), news() if news else None)
        return HTMLResponse(html, headers={"Cache-Control": "no-store"})

    @router.get("/table.csv", response_class=Response)
    def table(who: Admin, what: str) -> Response:
        """One table of the page with unrounded numbers."""
        tables = sheets(live.figures())
        if what not in tables:
            raise HTTPException(422, f"what={what!r} is no table; known: {', '.join(tables)}")
        headers = {"Content-Disposition": f'attachment; filename="labels-{what}.csv"', "Cache-Control": "no-store"}
        return Response(as_csv(tables[what]), media_type="text/csv; charset=utf-8", headers=headers)

    @router.get("/events")
    def events(
        who: Admin,
        after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
        limit: Annotated[int, Query(ge=1, le=10 * PAGE)] = PAGE,
    ) -> dict[str, Any]:
        """Stored events after an event id, oldest first, and the id for the next request (null: no more yet)."""
        conditions = (event.c.event_id > after, event.c.event_id <= newest_event(live.store))
        query = sa.select(event).where(*conditions).order_by(event.c.event_id).limit(limit)
        with live.store.read() as db:
            rows = [dict(row) for row in db.execute(query).mappings()]
        return {"events": rows, "next_after": rows[-1]["event_id"] if len(rows) == limit else None}

    return router
