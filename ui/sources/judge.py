"""A language model behind an OpenAI-compatible endpoint as a judge of pairs, each in both orders."""

from __future__ import annotations

from trueup.console import progress, say
from trueup.errors import ModelError
from trueup.judging.endpoint import Endpoint, EndpointError, in_parallel
from trueup.judging.question import SYSTEM, Mark, agreement, question, verdict
from ui.labels.config import LabelConfig
from ui.labels.items import Item, ProgramLabel
from ui.labels.judgements import Tiers
from ui.labels.store import Store
from ui.sources.material import Material


def judge_pairs(config: LabelConfig, store: Store, items: Material) -> None:
    """Judge the pairs without a judgement. Each is stored at once, so an interrupted run continues."""
    annotator = config.programs["judge"]
    asked = items.for_program("judge")
    store.add_items(asked)
    judged_ids = store.judged("judge", annotator) & {item.item_id for item in asked}
    todo = [item for item in asked if item.item_id not in judged_ids]
    say(f"judge {config.judge_model}: {len(todo)} pairs to judge in both orders, {len(judged_ids)} judged before")
    endpoint = Endpoint(config.judge_url or "", config.judge_model or "", config.judge_parameters)
    try:
        for number, judged in enumerate(in_parallel(lambda item: _judge(endpoint, item), todo), start=1):
            store.put("judge", annotator, [judged])
            progress(number, len(todo))
    except EndpointError as error:
        raise ModelError(f"judge at {error}. Pairs judged so far are kept; run again to continue.") from None


def _judge(endpoint: Endpoint, item: Item) -> ProgramLabel:
    a, b = item.answers
    first, _ = verdict(endpoint.ask(SYSTEM, question(item.prompt, a.text, b.text)))
    back, _ = verdict(endpoint.ask(SYSTEM, question(item.prompt, b.text, a.text)))
    return ProgramLabel(item.item_id, _tiers(first, back))


def _tiers(first: Mark | None, back: Mark | None) -> Tiers | None:
    """Tiers of the two answers from the marks in the two orders; None if a reply has no mark."""
    if first is None or back is None:
        return None
    return {1.0: [[0], [1]], 0.0: [[1], [0]], 0.5: [[0, 1]]}[agreement(first, back)]
