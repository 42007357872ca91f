"""The labelling service: the one way in which the page, the HTTP API and tests write what people say.

It gives out a task (an opaque token, the prompt, the texts in the drawn order) and takes one answer for it. Nothing
in a task says which model, file or setting an answer came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trueup.records import Message
from ui.store import Progress, StaleToken, Store, Tiers, View

Choice = Literal["a", "b", "tie", "skip"]

# What a choice says, in places on the screen. A graded scale adds choices here, with their strengths.
CHOICES: dict[Choice, Tiers | None] = {"a": [[0], [1]], "b": [[1], [0]], "tie": [[0, 1]], "skip": None}


@dataclass(frozen=True)
class Task:
    """What is in front of an annotator."""

    token: str | None
    """None: everything is answered."""
    prompt: list[Message]
    texts: list[str]
    progress: Progress


@dataclass(frozen=True)
class LabelService:
    store: Store
    guideline: str

    def task(self, annotator: str) -> Task:
        """The pair that waits for this annotator; the same until it is answered."""
        return self._task(annotator, self.store.next_view(annotator))

    def answer(self, annotator: str, token: str, choice: Choice, client_uuid: str) -> Task:
        """Record an answer and return the next task; StaleToken if `token` is not what waits for this annotator."""
        return self._task(annotator, self.store.answer(token, annotator, client_uuid, CHOICES[choice]))

    def undo(self, annotator: str, client_uuid: str) -> tuple[bool, Task]:
        """Take back the last answer: whether there was one, and the task that is shown again."""
        done, shown = self.store.undo(annotator, client_uuid)
        return done, self._task(annotator, shown)

    def _task(self, annotator: str, shown: View | None) -> Task:
        progress = self.store.progress(annotator)
        if shown is None:
            return Task(None, [], [], progress)
        return Task(shown.token, shown.prompt, shown.texts, progress)


__all__ = ["CHOICES", "Choice", "LabelService", "StaleToken", "Task"]
