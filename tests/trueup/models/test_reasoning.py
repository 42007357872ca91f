"""A model that reasons: what is its answer, how long it may reason, and what is trained and judged of it."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import with_own_template

import templates
from trueup.data.pairs import pairs_of
from trueup.data.records import Candidate, Dropped, Message, Ranking, prompt_id
from trueup.errors import ModelError
from trueup.models import loading
from trueup.models.chat import EMPTY_BLOCK, REOPENED, encode_demonstration, encode_prompt, sampled_ids
from trueup.models.config import ModelConfig
from trueup.models.course import Course, most_tokens
from trueup.models.sampling import Decoding, sample
from trueup.models.templates.block import Block, inside, reasoning_block
from trueup.models.templates.choice import set_template
from trueup.training.pairs import encode_pairs

WHY = [Message(role="user", content="Why?")]
SHIPPED = {file.stem: file for file in templates.shipped_templates()}
OPENED = ["qwen3_6", "deepseek_r1_distill", "nemotron_3_nano"]
WRITTEN = ["qwen3", "glm4moe"]
"""Families whose prompt opens the block, and families whose model writes its start itself."""
CHATML_THAT_THINKS = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'].split('</think>')[-1]"
    " + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% else %}"
    "{{ '<think>\n' }}{% endif %}{% endif %}"
)


def that_thinks(family: str) -> Any:
    made = templates.tiny_tokenizer(SHIPPED[family].read_text(encoding="utf-8"))
    set_template(made, ModelConfig(thinking=True))
    return made


def drawn(tokenizer: Any, text: str) -> list[int]:
    """The tokens that a model draws which writes this text, and then the end of turn again and again."""
    block = reasoning_block(tokenizer)
    if block and block.opening:
        text = text.removeprefix(block.start)
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], *[tokenizer.eos_token_id] * 99]


def follow(tokenizer: Any, text: str, decoding: Decoding) -> Candidate:
    """The answer of a model that wants to write this text."""
    course, wishes = Course(tokenizer, decoding), iter(drawn(tokenizer, text))
    while not course.ended:
        course.take(next(wishes))
    assert len(course.ids) <= most_tokens(tokenizer, decoding)
    answer = course.candidate(0.0)
    ids = answer.token_ids[:-1] if answer.finished else answer.token_ids
    block = reasoning_block(tokenizer)
    opening = block.opening if block else ""
    assert opening + tokenizer.decode(ids) == answer.reasoning + answer.text, "no token is lost"
    return answer


# ---- Text -------------------------------------------------------------------------------------------------------


WRITES, OPENS = Block("think"), Block("think", "<think>\n")


@pytest.mark.parametrize(
    ("text", "block", "reasoning", "answer"),
    [
        ("<think>\nHm.\n</think>\n\nRed.", WRITES, "<think>\nHm.\n</think>\n\n", "Red."),
        ("Hm.\n</think>\n\nRed.", OPENS, "<think>\nHm.\n</think>\n\n", "Red."),
        ("\n<reasoning>Hm.</reasoning>Red. </think>", WRITES, "", "\n<reasoning>Hm.</reasoning>Red. </think>"),
        (
            "\n<reasoning>Hm.</think>.</reasoning>Red.",
            Block("reasoning"),
            "\n<reasoning>Hm.</think>.</reasoning>",
            "Red.",
        ),
        ("<think>Hm.", WRITES, "<think>Hm.", ""),
        ("Hm.", OPENS, "<think>\nHm.", ""),
        ("Red. <think>is a tag</think>", WRITES, "", "Red. <think>is a tag</think>"),
        ("", WRITES, "", ""),
    ],
)
def test_an_answer_is_what_stands_behind_the_block(text: str, block: Block, reasoning: str, answer: str) -> None:
    assert block.split(text) == (reasoning, answer)


@pytest.mark.parametrize("block", [WRITES, OPENS, Block("reasoning"), Block("reasoning", "<reasoning>")])
def test_the_text_of_an_answer_with_its_reasoning_gives_both_again_behind_any_prompt(block: Block) -> None:
    """Over what a policy may write: tags, halves of tags, space and words in any order."""
    chance = random.Random(0)
    pieces = ["<think>", "</think>", "<reasoning>", "</reasoning>", "<thi", "\n", " ", "Hm.", "é"]
    for _ in range(2000):
        sampled = "".join(chance.choices(pieces, k=chance.randrange(6)))
        reasoning, answer = block.split(sampled)
        assert reasoning + answer == block.opening + sampled
        if block.opening:
            assert block.behind_prompt(reasoning + answer) == sampled
        assert block.holds(reasoning) == bool(reasoning)


def test_a_block_is_shown_without_its_tags() -> None:
    shown = [inside(text) for text in ("<think>\nHm.\n</think>\n\n", "<reasoning>Hm. </think> is a tag", "")]
    assert shown == ["Hm.", "Hm. </think> is a tag", ""]
    assert inside(f"Hm.{' ' * 100_000}<think>") == f"Hm.{' ' * 100_000}<think>", "in linear time, and only at its start"


# ---- Budgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*OPENED, *WRITTEN])
@pytest.mark.parametrize("thoughts", ["Hm.", "x" * 300, ""])
@pytest.mark.parametrize("ends_inside", [False, True])
def test_reasoning_is_never_the_reason_that_an_answer_is_cut(family: str, thoughts: str, ends_inside: bool) -> None:
    tokenizer, decoding = that_thinks(family), Decoding(6, max_thinking_tokens=40)
    text = f"<think>{thoughts}" + ("" if ends_inside else "</think>\n\nRed.")
    answer = follow(tokenizer, text, decoding)
    assert answer.reasoning.rstrip().endswith("</think>")
    assert answer.reasoning_tokens <= 40
    if len(thoughts) < 40:
        assert answer.finished and answer.text == ("" if ends_inside else "Red.")
    elif not ends_inside:
        assert answer.text == "x" * 6 and answer.num_tokens == 6, "max_new_tokens count from the end of the block"


@pytest.mark.parametrize("family", [*OPENED, *WRITTEN])
@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning"])
@pytest.mark.parametrize("asked", [0, 1, 20])
def test_a_budget_that_no_block_fits_is_as_large_to_a_campaign_as_to_the_sampler(
    family: str, tag: str, asked: int
) -> None:
    template = SHIPPED[family].read_text(encoding="utf-8").replace("think>", f"{tag}>")
    tokenizer, model = templates.tiny_tokenizer(template), ModelConfig(thinking=True)
    set_template(tokenizer, model)
    decoding = Decoding(6, max_thinking_tokens=asked)
    assert most_tokens(tokenizer, decoding) == 6 + model.thinking_budget(asked)
    answer = follow(tokenizer, f"<{tag}>" + "x" * 300, decoding)
    assert answer.text == "x" * 6 and answer.reasoning.rstrip().endswith(f"</{tag}>")


@pytest.mark.parametrize("family", WRITTEN)
def test_a_model_that_may_think_may_also_answer_at_once(family: str) -> None:
    tokenizer = that_thinks(family)
    for text in ("Red.", "", "<thinly>Red", "\n\n\n\n\n\n\n\nRed"):
        answer = follow(tokenizer, text, Decoding(20, max_thinking_tokens=30))
        assert (answer.text, answer.reasoning, answer.finished) == (text, "", True)
    cut = follow(tokenizer, "Red and blue and pink", Decoding(3, max_thinking_tokens=30))
    assert (cut.num_tokens, cut.reasoning, cut.finished) == (3, "", False)


@pytest.mark.parametrize("family", [*OPENED, *WRITTEN, "llama3"])
@pytest.mark.parametrize("tag", ["think", "thinking", "reasoning"])
def test_reasoning_that_nobody_asked_for_is_kept_apart_and_never_forced(family: str, tag: str) -> None:
    tokenizer = templates.tiny_tokenizer(SHIPPED[family].read_text(encoding="utf-8"))
    set_template(tokenizer, ModelConfig())
    assert reasoning_block(tokenizer) is None and most_tokens(tokenizer, Decoding(7)) == 7
    answer = follow(tokenizer, f"<{tag}>Hm.</{tag}>Red.", Decoding(99))
    assert (answer.reasoning, answer.text, answer.finished) == (f"<{tag}>Hm.</{tag}>", "Red.", True)
    cut = follow(tokenizer, f"<{tag}>{'Hm.' * 30}", Decoding(40))
    assert (cut.text, cut.num_tokens, len(cut.token_ids), cut.finished) == ("", 0, 40, False)
    plain = follow(tokenizer, "Red.", Decoding(99))
    assert set(plain.model_dump()) == {"text", "token_ids", "finished", "logp"}, "rows have no further column"
    assert "max_thinking_tokens" not in Decoding(7).facts


def test_a_form_of_reasoning_that_cannot_be_told_from_the_answer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.thinking: the chat template writes no block of reasoning"):
        that_thinks("gptoss")


# ---- What is trained, and what is judged ------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*OPENED, *WRITTEN])
def test_reasoning_is_trained_and_not_judged(family: str) -> None:
    tokenizer = that_thinks(family)
    answers = [
        follow(tokenizer, f"<think>Hm, {c}.</think>\n\nIt is {c}.", Decoding(30, max_thinking_tokens=40))
        for c in ("red", "blue")
    ]
    ranking = Ranking(
        label_id="l", prompt_id=prompt_id(WHY), prompt=WHY, split="train", source="human", annotator="a",
        created_utc="2026-01-01", completions=[one.text for one in answers],
        completion_token_ids=[one.token_ids for one in answers], finished=[one.finished for one in answers],
        reasonings=[one.reasoning for one in answers], tiers=[[0], [1]],
    )  # fmt: skip
    (pair,) = pairs_of(Ranking.model_validate_json(ranking.model_dump_json()))
    assert pair.chosen[0].content == "It is red."
    _, (trained,) = encode_pairs([pair], tokenizer, 999, Dropped())
    assert trained.chosen_ids == answers[0].token_ids
    text = encode_pairs([pair.model_copy(update={"chosen_token_ids": None})], tokenizer, 999, Dropped())[1][0]
    assert tokenizer.decode(text.chosen_ids) == tokenizer.decode(answers[0].token_ids), "by its text it is the same"
    _, (judged,) = encode_pairs([pair], tokenizer, 999, Dropped(), with_reasoning=False)
    block = reasoning_block(tokenizer)
    assert block is not None
    assert tokenizer.decode(judged.chosen_ids) == (
        (block.closing if block.opening else "") + f"It is red.{tokenizer.eos_token}"
    )


@pytest.mark.parametrize("family", OPENED)
def test_an_answer_behind_a_prompt_that_opens_a_block_closes_it(family: str) -> None:
    tokenizer = that_thinks(family)
    start = tokenizer.decode(encode_prompt(tokenizer, WHY))
    for text, behind, change in (
        ("<think>\nHm.\n</think>\n\nRed.", "Hm.\n</think>\n\nRed.", set()),
        ("\n<think>Hm.\n</think>\n\nRed.", "Hm.\n</think>\n\nRed.", {REOPENED}),
        ("Hm.\n</think>\n\nRed.", "Hm.\n</think>\n\nRed.", set()),  # as a model writes it behind this prompt
        ("Red.", "\n</think>\n\nRed.", {EMPTY_BLOCK}),
        ("```\n<think>\n</think>\n```", "\n</think>\n\n```\n<think>\n</think>\n```", {EMPTY_BLOCK}),
        ("The tag </think> ends it.", "\n</think>\n\nThe tag </think> ends it.", {EMPTY_BLOCK}),
    ):
        changes: set[str] = set()
        (row,) = encode_demonstration(tokenizer, [*WHY, Message(role="assistant", content=text)], changes)
        assert tokenizer.decode(row.input_ids) == start + behind + tokenizer.eos_token
        assert changes == change


def test_tokens_sampled_behind_an_open_block_are_no_record_where_the_prompt_has_closed_it() -> None:
    thinks = that_thinks("deepseek_r1_distill")
    answer = follow(thinks, "<think>Hm.</think>Red.", Decoding(30, max_thinking_tokens=40))
    off = templates.tiny_tokenizer(SHIPPED["deepseek_r1_distill"].read_text(encoding="utf-8"))
    set_template(off, ModelConfig())
    for tokenizer, record in ((thinks, answer.token_ids), (off, None)):
        assert sampled_ids(tokenizer, answer.reasoning + answer.text, True, answer.token_ids) == record


# ---- Sampling ---------------------------------------------------------------------------------------------------


@pytest.fixture
def thinker(bases: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny random model whose template lets it think."""
    return with_own_template(bases("chatml"), tmp_path / "thinker", CHATML_THAT_THINKS)


def test_every_way_of_sampling_closes_the_block_and_shares_its_random_numbers(thinker: Path) -> None:
    base = loading.load_base(ModelConfig(name=str(thinker), thinking=True))
    decoding = Decoding(5, seed=1, max_thinking_tokens=36)
    one_by_one = [sample(base, [WHY], decoding, 3, 1)[0], sample(base, [WHY], decoding, 3, 99)[0]]
    assert one_by_one[0] == one_by_one[1]
    for answer in one_by_one[0]:
        assert answer.reasoning.rstrip().endswith("</think>") and 0 < answer.reasoning_tokens <= 36
        assert answer.num_tokens == 5 or answer.finished
        assert answer.logp is not None and answer.logp < 0
    tokenizer = base.tokenizer
    assert most_tokens(tokenizer, decoding) == 41


def test_off_a_template_that_thinks_gives_the_same_as_one_that_cannot(
    thinker: Path, bases: Callable[[str], Path]
) -> None:
    base = loading.load_base(ModelConfig(name=str(thinker)))
    answers = sample(base, [WHY], Decoding(5, seed=1), 2, 1)[0]
    assert all(not answer.reasoning and len(answer.token_ids) <= 5 for answer in answers)
    assert answers == sample(base, [WHY], Decoding(5, seed=1, max_thinking_tokens=50), 2, 1)[0]
