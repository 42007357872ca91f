"""A language model behind an OpenAI-compatible endpoint as a judge of pairs.

Judges favour the answer that they read first, so each pair is asked in both orders and only agreement counts; two
verdicts that contradict each other are a tie. Prompt and verdict marks: Zheng et al. 2023, figure 5
(https://arxiv.org/abs/2306.05685), without the request for an explanation.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

from trueup.console import progress, say
from trueup.errors import ModelError
from trueup.records import Message
from ui.config import LabelConfig
from ui.sources import Material
from ui.store import Item, Store, Tiers, Verdict

CONCURRENT = 4
RETRIES_AFTER_S = (1.0, 4.0, 15.0)
TIMEOUT_S = 120.0
_MARK = re.compile(r"\[\[(A|B|C)\]\]")

SYSTEM = (
    "Please act as an impartial judge and evaluate the quality of the responses provided by two AI assistants to the "
    "user question displayed below. You should choose the assistant that follows the user's instructions and answers "
    "the user's question better. Consider helpfulness, relevance, accuracy, depth and level of detail. Do not let the "
    "order or the length of the responses influence your decision. Be as objective as possible. Output only your "
    'verdict, in this format: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, "[[C]]" for a tie.'
)

# ---- The source -------------------------------------------------------------------------------------------------


def judge_pairs(config: LabelConfig, store: Store, found: Material) -> None:
    """Have the pairs judged that are not yet; what is judged is stored at once, so an interrupted run continues."""
    annotator = config.programs["judge"]
    store.add_items(found.pairs)
    done = store.judged("judge", annotator) & {item.item_id for item in found.pairs}
    todo = [item for item in found.pairs if item.item_id not in done]
    say(f"judge {config.judge_model}: {len(todo)} pairs to judge in both orders, {len(done)} judged before")
    with ThreadPoolExecutor(CONCURRENT) as pool:
        try:
            for number, verdict in enumerate(pool.map(lambda item: _judge(config, item), todo), start=1):
                store.put("judge", annotator, [verdict])
                progress(number, len(todo))
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _judge(config: LabelConfig, item: Item) -> Verdict:
    a, b = item.answers
    there = _ask(config, _question(item.prompt, a.text, b.text))
    back = _ask(config, _question(item.prompt, b.text, a.text))
    return Verdict(item.item_id, _agreement(there, back))


Mark = Literal["A", "B", "C"] | None


def _agreement(there: Mark, back: Mark) -> Tiers | None:
    """Tiers of the two answers from the verdicts in the two orders; None when a reply holds no verdict."""
    if there is None or back is None:
        return None
    if (there, back) == ("A", "B"):
        return [[0], [1]]
    if (there, back) == ("B", "A"):
        return [[1], [0]]
    return [[0, 1]]


def _question(prompt: list[Message], a: str, b: str) -> str:
    turns = "\n\n".join(f"{message.role}: {message.content}" for message in prompt)
    return (
        f"[User Question]\n{turns}\n\n"
        f"[The Start of Assistant A's Answer]\n{a}\n[The End of Assistant A's Answer]\n\n"
        f"[The Start of Assistant B's Answer]\n{b}\n[The End of Assistant B's Answer]"
    )


# ---- The endpoint -----------------------------------------------------------------------------------------------


def _ask(config: LabelConfig, question: str) -> Mark:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    body = {"model": config.judge_model, "messages": messages, "temperature": 0}
    url = f"{(config.judge_url or '').rstrip('/')}/chat/completions"
    answer = _post(url, body)
    try:
        reply = answer["choices"][0]["message"]["content"]
    except (LookupError, TypeError):
        raise ModelError(f"{url}: answered without choices[0].message.content: {str(answer)[:200]}") from None
    marks = _MARK.findall(reply or "")
    return marks[-1] if marks else None


def _post(url: str, body: dict[str, Any]) -> Any:
    """The endpoint's answer as JSON. What may pass (429, 5xx, no connection) is tried again, the rest is an error."""
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    problem = ""
    for pause_s in (*RETRIES_AFTER_S, None):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            said = error.read(300).decode(errors="replace").strip()
            problem = f"{error.code} {error.reason}: {said}"
            if error.code in (401, 403):
                problem += "; the key is read from the environment variable OPENAI_API_KEY"
            if error.code != 429 and error.code < 500:
                break
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            problem = f"no answer ({getattr(error, 'reason', None) or error})"
        except ValueError:
            problem = "the answer is not JSON"
        if pause_s is not None:
            time.sleep(pause_s)
    raise ModelError(f"judge at {url}: {problem}. Pairs judged so far are kept; run again to continue.")
