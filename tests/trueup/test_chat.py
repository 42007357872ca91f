"""Conversations as tokens: what is trained is what is asked, and every answer ends with a trained EOS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from trueup.chat import (
    IGNORED,
    encode_completion,
    encode_demonstration,
    encode_prompt,
    portable_template,
    set_template,
)
from trueup.config import ModelConfig
from trueup.errors import DataError, ModelError
from trueup.records import Message

QUESTION = [Message(role="user", content="Say red.")]
ONE_TURN = [*QUESTION, Message(role="assistant", content="It is red.")]
DIALOGUE = [
    Message(role="system", content="Be brief."),
    *ONE_TURN,
    Message(role="user", content="And\nblue? "),
    Message(role="assistant", content=" It is blue.\n"),
]
LAYOUTS = [
    ("plain", "plain", False),
    ("plain", "auto", False),
    ("plain", "chatml", False),
    ("plain", "chatml", True),
    ("llama", "plain", False),
    ("llama", "chatml", False),
    ("llama", "chatml", True),
    ("chatml", "auto", False),
    ("chatml", "chatml", False),
]


@pytest.fixture
def tokenizer(bases: Callable[[str], Path]) -> Callable[..., Any]:
    def make(base: str, template: str = "auto", new_tokens: bool = False) -> Any:
        made = AutoTokenizer.from_pretrained(bases(base))
        set_template(made, ModelConfig(chat_template=template, new_tokens=new_tokens))
        return made

    return make


def trained_turns(tokenizer: Any, labels: list[int]) -> list[str]:
    """The text of each run of labels, special tokens shown."""
    turns: list[list[int]] = []
    for before, label in zip([IGNORED, *labels], labels, strict=False):
        if label != IGNORED and before == IGNORED:
            turns.append([])
        if label != IGNORED:
            turns[-1].append(label)
    return [tokenizer.decode(turn) for turn in turns]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_what_is_trained_is_the_assistants_words_and_their_end_in_every_turn(tokenizer, layout: tuple) -> None:
    made = tokenizer(*layout)
    ids, labels = encode_demonstration(made, DIALOGUE)
    assert trained_turns(made, labels) == [f"It is red.{made.eos_token}", f"It is blue.{made.eos_token}"]
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("conversation", [ONE_TURN, DIALOGUE], ids=["one turn", "dialogue"])
def test_a_policy_is_asked_in_the_tokens_that_it_was_trained_on(tokenizer, layout: tuple, conversation: list) -> None:
    made = tokenizer(*layout)
    ids, labels = encode_demonstration(made, conversation)
    prompt = encode_prompt(made, conversation[:-1])
    finished = encode_completion(made, conversation[:-1], conversation[-1].content, finished=True)
    assert ids[: len(prompt)] == prompt
    assert ids[len(prompt) : len(prompt) + len(finished)] == finished
    assert [label for label in labels[len(prompt) :] if label != IGNORED] == finished
    assert finished[-1] == made.eos_token_id
    unfinished = encode_completion(made, conversation[:-1], conversation[-1].content, finished=False)
    assert unfinished == finished[:-1] and made.eos_token_id not in unfinished


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bos_stands_once_at_the_start_where_the_tokenizer_adds_it_and_nowhere_else(tokenizer, layout: tuple) -> None:
    made = tokenizer(*layout)
    ids = encode_demonstration(made, DIALOGUE)[0]
    if layout[0] == "llama":
        assert (ids[0], ids.count(made.bos_token_id)) == (made.bos_token_id, 1)
    else:
        assert made.decode(ids).startswith(("System:", "<|im_start|>system"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_padding_is_not_eos_where_the_vocabulary_has_another_token_for_it(tokenizer, layout: tuple) -> None:
    made = tokenizer(*layout)
    only_eos = layout[0] == "plain" and not layout[2]  # its vocabulary has no special token but EOS
    assert made.pad_token_id is not None
    assert (made.pad_token_id == made.eos_token_id) == only_eos


def test_plain_and_chatml_lay_out_a_dialogue_as_documented(tokenizer) -> None:
    made = tokenizer("plain", "plain")
    assert made.decode(encode_demonstration(made, DIALOGUE)[0]) == (
        "System:\nBe brief.\n\nUser:\nSay red.\n\nAssistant:\nIt is red.<|endoftext|>\n\n"
        "User:\nAnd\nblue?\n\nAssistant:\nIt is blue.<|endoftext|>\n\n"
    )
    made = tokenizer("plain", "chatml", True)
    assert made.decode(encode_demonstration(made, ONE_TURN)[0]) == (
        "<|im_start|>user\nSay red.<|im_end|>\n<|im_start|>assistant\nIt is red.<|im_end|>\n"
    )


def test_new_tokens_are_one_token_each_and_only_added_with_chatml(bases, tokenizer) -> None:
    made = tokenizer("plain", "chatml", True)
    before = len(AutoTokenizer.from_pretrained(bases("plain")))
    assert len(made) == before + 2 and made.eos_token == "<|im_end|>"
    assert encode_prompt(made, QUESTION)[0] == made.convert_tokens_to_ids("<|im_start|>") >= before
    with pytest.raises(ModelError, match=r"set model\.chat_template: chatml with it"):
        tokenizer("plain", "plain", True)


def test_a_choice_says_what_was_chosen_and_why(bases) -> None:
    def said(base: str, **config: Any) -> str:
        return set_template(AutoTokenizer.from_pretrained(bases(base)), ModelConfig(**config))

    assert said("plain") == (
        "chat template plain (this tokenizer has none, as of a base model), end of turn '<|endoftext|>', "
        "pad is EOS (the vocabulary has no other token for it; masks are made from lengths, never from ids)"
    )
    assert said("chatml") == (
        "chat template own (the tokenizer brings it), end of turn '<|im_end|>', "
        "pad '<|endoftext|>' (not EOS, so that EOS stays a label)"
    )
    assert said("llama", chat_template="chatml").startswith(
        "chat template chatml (as the config says), end of turn '</s>', pad '<unk>'"
    )


def test_a_template_that_trains_no_eos_is_refused(tmp_path: Path, bases) -> None:
    template = tmp_path / "no_end.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    made = AutoTokenizer.from_pretrained(bases("llama"))
    set_template(made, ModelConfig(chat_template=str(template)))
    with pytest.raises(
        ModelError,
        match=r"does not end every assistant turn with '</s>' .* set model\.chat_template to chatml or plain",
    ):
        encode_demonstration(made, ONE_TURN)


def test_a_template_that_ends_only_the_last_turn_is_refused_for_a_dialogue(tmp_path: Path, bases) -> None:
    template = tmp_path / "last_end.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] }}"
        "{{ eos_token if loop.last }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
        "{{ 'assistant: ' if add_generation_prompt }}"
    )
    made = AutoTokenizer.from_pretrained(bases("plain"))
    set_template(made, ModelConfig(chat_template=str(template)))
    assert encode_demonstration(made, ONE_TURN)
    with pytest.raises(ModelError, match="does not end every assistant turn"):
        encode_demonstration(made, DIALOGUE)


def test_a_template_that_asks_in_other_tokens_than_it_trains_is_refused(tmp_path: Path, bases) -> None:
    template = tmp_path / "reasoning.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] + ': ' }}{% if m['role'] == 'assistant' %}"
        "{% generation %}{{ m['content'] + eos_token }}"
        "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}{% endfor %}"
        "{{ 'assistant: <think>' if add_generation_prompt }}"
    )
    made = AutoTokenizer.from_pretrained(bases("plain"))
    set_template(made, ModelConfig(chat_template=str(template)))
    with pytest.raises(ModelError, match="renders a prompt differently alone and with its answer"):
        encode_demonstration(made, ONE_TURN)


def test_a_tokenizer_without_eos_and_a_template_that_is_nothing_known_are_refused(bases) -> None:
    made = AutoTokenizer.from_pretrained(bases("plain"))
    with pytest.raises(ModelError, match="'chatlm' is neither auto, chatml, plain nor a file"):
        set_template(made, ModelConfig(chat_template="chatlm"))
    made.eos_token = None
    with pytest.raises(ModelError, match="has no EOS token, so no answer could ever end"):
        set_template(made, ModelConfig(chat_template="plain"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_text_that_spells_the_end_of_turn_is_refused_since_it_would_be_read_as_one(tokenizer, layout: tuple) -> None:
    made = tokenizer(*layout)
    for role, others in (("user", ONE_TURN[1:]), ("assistant", [])):
        turns = [Message(role=role, content=f"Say {made.eos_token} red."), *others]  # type: ignore[arg-type]
        conversation = turns if role == "user" else [*QUESTION, *turns]
        with pytest.raises(
            DataError, match=r"spells '.*', which this model reads as the end of a turn: 'Say .* red\.'; take"
        ):
            encode_demonstration(made, conversation)
    with pytest.raises(DataError, match="a user turn spells"):
        encode_prompt(made, [Message(role="user", content=made.eos_token)])


@pytest.mark.parametrize("tag", ["{% generation %}|{% endgeneration %}", "{%- generation -%}|{%-endgeneration-%}"])
@pytest.mark.parametrize("trim", [True, False])
def test_a_portable_template_renders_the_same_in_plain_jinja(bases, tag: str, trim: bool) -> None:
    """With and without `trim_blocks`, which engines set differently."""
    import jinja2

    opened, closed = tag.split("|")
    rest = f" \n  {opened}\n {{{{ m['content'] + eos_token }}}} \n{closed} \n"
    made = AutoTokenizer.from_pretrained(bases("plain"))
    made.chat_template = f"{{% for m in messages %}}{{{{ m['role'] + ': ' }}}}{rest}{{% endfor %}}"
    portable = portable_template(made)
    assert "generation" not in portable
    turns = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "It is red."}]
    as_was = made.apply_chat_template(turns, tokenize=False)
    plain = jinja2.Environment(trim_blocks=trim, lstrip_blocks=trim)
    rendered = plain.from_string(portable).render(messages=turns, eos_token=made.eos_token)
    assert (rendered == as_was) == (trim or "-" in tag)
    made.chat_template = portable
    assert made.apply_chat_template(turns, tokenize=False) == as_was
