"""Tools in every template: what the assistant writes is trained, and nothing else; or the row is refused by name."""

from __future__ import annotations

import json
import re
from itertools import groupby
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import templates
from trueup.data.records import Demonstration, Dropped, Message, ToolCall, parse_row
from trueup.errors import DataError, ModelError
from trueup.models.chat import IGNORED, encode_demonstration, encode_prompt
from trueup.models.config import ModelConfig
from trueup.models.encoding import Fitting, RefusedRows, encode_demonstrations, fit, longest
from trueup.models.templates.choice import set_template
from trueup.models.templates.tools import MADE_IDS, tool_form

SHIPPED = {file.stem: file for file in templates.shipped_templates() if not file.stem.endswith("_training")}
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{% if tools and messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list | length == 1 %}"
    "[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]"
    "{% elif m.tool_calls is defined %}[TOOL_CALLS][{% for call in m.tool_calls %}"
    "{% if call.id is not defined or call.id | length != 9 %}{{ raise_exception('ids have nine letters') }}{% endif %}"
    '{{ dict(call.function, id=call.id) | tojson }}{{ ", " if not loop.last }}{% endfor %}]{{ eos_token }}'
    "{% elif m.role == 'assistant' %}{{ m.content + eos_token }}{% elif m.role == 'tool' %}"
    '[TOOL_RESULTS]{{ {"content": m.content, "call_id": m.tool_call_id} | tojson }}[/TOOL_RESULTS]{% endif %}'
    "{% endfor %}"
)
"""In the way of Mistral's: tools before the last question, ids of nine letters."""
TEXT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ tools | tojson if loop.first and tools }}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name + ' ' + call.function.arguments }}"
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}"
)
"""In the way of DeepSeek's: arguments are joined as text."""
WRITES = "llama3_1 llama3_2 qwen2_5 qwen3 qwen3_instruct_2507 qwen3_vl qwen3_5_think qwen3_6 glm4moe lfm2_2_5 ".split()
WRITES += "lfm2_2_5_v2 lfm2_v2 gemma4_v2 nemotron_3_nano nemotron_3_ultra mistral_like text_like".split()
REFUSES = {
    "gemma": "it refuses a call with its result",
    "gemma3": "it refuses a call with its result",
    "llama3": "it leaves out the tools",
    "phi3_5": "it leaves out the tools",
    "qwen2_5_vl": "it leaves out the tools",
    "cohere2": "it leaves out the tools",
    "deepseek_r1_distill": "it leaves out the tools",
    "deepseekv3": "it leaves out the tools",
    "lfm2": "it leaves out the call",
}
_TOKENIZERS: dict[str, Any] = {}


def of_family(name: str, **config: Any) -> Any:
    key = f"{name} {config}"
    if key not in _TOKENIZERS:
        text = {"mistral_like": MISTRAL, "text_like": TEXT}.get(name) or SHIPPED[name].read_text(encoding="utf-8")
        _TOKENIZERS[key] = templates.tiny_tokenizer(text)
        set_template(_TOKENIZERS[key], ModelConfig(**config))
    return _TOKENIZERS[key]


def tool(name: str, about: str = "Gives the warmth.") -> dict[str, Any]:
    city = {"type": "string", "description": "Where."}
    parameters = {"type": "object", "properties": {"city": city}, "required": ["city"]}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": parameters}}


def call(name: str = "warmth", **arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=arguments)


def asks(text: str, tools: list[Any] | None = None) -> Message:
    return Message(role="user", content=text, tools=tools)


def says(text: str, *calls: ToolCall, trained: bool = True) -> Message:
    return Message(role="assistant", content=text, tool_calls=list(calls) or None, trained=trained)


def gives(text: str) -> Message:
    return Message(role="tool", content=text, name="warmth")


ROW = [
    asks("How warm is Rome?", [tool("warmth")]),
    says("", call(city='Rome "old"\ntown', days=2)),
    gives('{"degrees": "21\n"}'),
    says("It has 21."),
    asks("And Oslo?"),
    says("", call(city="Oslo")),
    gives("4"),
    says(" It has 4.\n"),
]


def trained_turns(tokenizer: Any, messages: list[Message], changes: set[str] | None = None) -> list[str]:
    """The text of each turn that is trained, with its end."""
    turns = []
    for row in encode_demonstration(tokenizer, messages, changes):
        assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))
        for trained, run in groupby(row.labels, key=lambda label: label != IGNORED):
            if trained:
                eos = tokenizer.eos_token
                turns.append(tokenizer.decode([tokenizer.eos_token_id, *run]).removeprefix(eos))
    return turns


@pytest.mark.parametrize("family", WRITES)
def test_the_assistants_calls_and_texts_are_trained_and_neither_tools_nor_results(family: str) -> None:
    made, changes = of_family(family), set[str]()
    first, answer, second, last = trained_turns(made, ROW, changes)
    assert (answer, last) == (f"It has 21.{made.eos_token}", f" It has 4.\n{made.eos_token}")
    for text, words in ((first, ("warmth", "city", "Rome", "old", "town", "2")), (second, ("warmth", "city", "Oslo"))):
        assert text.endswith(made.eos_token) and text.count(made.eos_token) == 1
        at = 0
        for word in words:
            at = text.index(word, at)
        assert "degrees" not in text and "Gives the warmth" not in text
    assert tool_form(made).words in changes, "the choice is told, with the count of rows"


@pytest.mark.parametrize("family", WRITES)
def test_a_call_is_trained_as_the_template_itself_writes_it_behind_the_prompt(family: str) -> None:
    """By transformers alone: the template's text of the conversation is the prompt, the call and its end."""
    made = of_family(family)
    arguments: Any = ROW[1].tool_calls[0].arguments  # type: ignore[index]
    given = arguments if tool_form(made).arguments == "object" else json.dumps(arguments)
    question = {"role": "user", "content": ROW[0].content}
    one = {"type": "function", "id": "abcdefgh9", "function": {"name": "warmth", "arguments": given}}
    calls = {"role": "assistant", "content": "", "tool_calls": [one]}
    tools: Any = ROW[0].tools
    whole = made.apply_chat_template([question, calls], tools=tools, tokenize=False)
    prompt = made.decode(encode_prompt(made, ROW[:1]))
    with_id = [ROW[0], says("", ROW[1].tool_calls[0].model_copy(update={"id": "abcdefgh9"}))]  # type: ignore[index]
    [said] = trained_turns(made, with_id)
    body = said.removesuffix(made.eos_token)
    assert whole.rstrip().removesuffix(made.eos_token).endswith(body)
    asked = made.apply_chat_template([question], tools=tools, tokenize=False, add_generation_prompt=True)
    assert prompt == asked


@pytest.mark.parametrize("family", REFUSES)
def test_a_template_that_does_not_write_tools_refuses_each_row_with_them_and_takes_the_others(family: str) -> None:
    made = of_family(family)
    plain = [asks("Why?"), says("So.")]
    texts: list[list[Message]] = [ROW, [asks("Why?", [tool("warmth")]), says("So.")], [*ROW[:1], *ROW[1:2]], plain]
    rows = [parse_row(Demonstration, {"messages": one}, f"rows.jsonl:{n}") for n, one in enumerate(texts, start=1)]
    refused, dropped = RefusedRows(), Dropped()
    assert len(encode_demonstrations(rows, made, Fitting(2000), refused, "refuse", dropped)) == 1
    [line] = refused.lines()
    assert line.startswith("rows.jsonl:1: the chat template does not write tools: ") and REFUSES[family] in line
    assert "(and in 2, 3)" in line and "give model.chat_template a file" in line and "on_bad_rows: drop" in line
    with pytest.raises(ModelError):
        refused.stop()
    assert len(encode_demonstrations(rows, made, Fitting(2000), RefusedRows(), "drop", dropped)) == 1
    assert sum(dropped.counts.values()) == 3


@pytest.mark.parametrize("family", ["gptoss", "muse_glimmer"])
def test_a_template_that_begins_a_call_otherwise_than_it_asks_is_refused(family: str) -> None:
    with pytest.raises(ModelError, match="and begins a call of a tool otherwise"):
        encode_demonstration(of_family(family), ROW)


def test_the_token_that_begins_the_next_turn_ends_a_call_where_the_model_stops_at_it() -> None:
    """GLM and Gemma 4 stop a call at the token of the result."""
    for family, token in (("glm4moe", "<|observation|>"), ("gemma4_v5", "<|tool_response>")):
        made = templates.tiny_tokenizer(SHIPPED[family].read_text(encoding="utf-8"))
        set_template(made, ModelConfig(), [made.convert_tokens_to_ids(token)])
        first, answer, second, _ = trained_turns(made, ROW)
        assert first.endswith(token) and second.endswith(token) and answer == f"It has 21.{made.eos_token}"
    with pytest.raises(ModelError, match=r"ends a call of a tool with .* nobody knows where the model would stop"):
        encode_demonstration(of_family("gemma4_v5"), ROW)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5_think", "nemotron_3_nano", "glm4moe"])
def test_a_model_that_reasons_closes_its_block_before_a_call(family: str) -> None:
    made = of_family(family, thinking=True)
    first, *_ = trained_turns(made, ROW[:2])
    asked = made.decode(encode_prompt(made, ROW[:1]))
    assert "<think>" not in re.sub(r"<think>\s*</think>", "", asked.rpartition("How warm is Rome?")[2] + first)


def test_reasoning_before_a_call_is_trained_in_the_block_that_the_template_writes() -> None:
    made = of_family("qwen3", thinking=True)
    [said] = trained_turns(made, [ROW[0], says("<think>\nWhere?\n</think>\n\nLook.", call(city="Rome"))])
    assert said.startswith("<think>\nWhere?\n</think>\n\nLook.\n<tool_call>\n")
    with pytest.raises(DataError, match="the chat template has closed the block before it"):
        encode_demonstration(of_family("qwen3"), [ROW[0], says("<think>Where?</think>", call(city="Rome"))])


WORDS = st.text(alphabet="abcXYZ 0\"'\\\n{}[]:,äß🙂", min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize("family", ["llama3_1", "qwen2_5", "mistral_like", "text_like"])
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_no_token_of_a_tool_or_a_result_is_trained_whatever_they_say(family: str, data: st.DataObject) -> None:
    made = of_family(family)
    messages = [asks("Q", [tool("warmth", f"§{data.draw(WORDS)}§")])]
    answers = []
    for _ in range(data.draw(st.integers(1, 3))):
        value, text = data.draw(WORDS), data.draw(WORDS)
        messages += [says("", call(city=value)), gives(f"§{data.draw(WORDS)}§"), says(text), asks("Q")]
        answers += [value, text]
    try:
        turns = trained_turns(made, messages[:-1])
    except DataError as error:
        assert "writes another text than the row's" in str(error), "a template that trims what is quoted"
        return
    assert len(turns) == len(answers) and not any("§" in turn for turn in turns)
    for value, turn in zip(answers[::2], turns[::2], strict=True):
        assert value in turn or json.dumps(value, ensure_ascii=False)[1:-1] in turn
    assert [turn.removesuffix(made.eos_token) for turn in turns[1::2]] == answers[1::2]


def test_several_calls_of_a_turn_and_a_text_beside_them_are_trained_together() -> None:
    made = of_family("qwen2_5")
    two = [ROW[0], says("Both.", call(city="Rome"), call(city="Oslo")), gives("21"), gives("4"), says("So.")]
    assert trained_turns(made, two) == [
        'Both.\n<tool_call>\n{"name": "warmth", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "warmth", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
        "So.<|im_end|>",
    ]
    with pytest.raises(DataError, match="This model only supports single tool-calls"):
        encode_demonstration(of_family("llama3_1"), two)
    with pytest.raises(DataError, match="leaves out what is said beside a call"):
        encode_demonstration(of_family("mistral_like"), [ROW[0], says("Look.", call(city="Rome"))])


def test_a_call_without_loss_is_read_alone() -> None:
    made = of_family("qwen2_5")
    turns = [ROW[0], says("", call(city="Rome"), trained=False), ROW[2], says("Yes.")]
    assert trained_turns(made, turns) == ["Yes.<|im_end|>"]


def test_ids_are_made_where_the_template_wants_them_in_a_form_of_its_own_and_it_is_told() -> None:
    made, own, none = of_family("mistral_like"), set[str](), set[str]()
    given = [one.model_copy(deep=True) for one in ROW]
    trained_turns(made, given, none)
    assert MADE_IDS in none
    with_ids = [
        ROW[0],
        says("", call(city="Rome").model_copy(update={"id": "abcdefgh9"})),
        gives("21").model_copy(update={"tool_call_id": "abcdefgh9"}),
        says("So."),
    ]
    first, _ = trained_turns(made, with_ids, own)
    assert '"id": "abcdefgh9"' in first and MADE_IDS not in own
    assert '"call_id": "abcdefgh9"' in made.decode(encode_demonstration(made, with_ids)[0].input_ids)
    openai = [one.model_copy(deep=True) for one in with_ids]
    openai[1].tool_calls[0].__dict__["id"] = openai[2].__dict__["tool_call_id"] = "call_long_id"  # type: ignore[index]
    changes = set[str]()
    trained_turns(made, openai, changes)
    assert MADE_IDS in changes
    [text] = [made.decode(row.input_ids) for row in encode_demonstration(made, openai)]
    assert text.count(re.findall(r'"id": "(\w{9})"', text)[0]) == 2, "the result names the call that it is of"


@pytest.mark.parametrize("place", ["tool", "argument", "name of an argument"])
def test_a_tool_or_a_call_that_spells_a_control_token_is_refused(place: str) -> None:
    row = [
        asks("Q", [tool("warmth", "Say <|im_end|> please." if place == "tool" else "Fine.")]),
        says("", call(**{"a<|im_end|>" if place.startswith("name") else "a": "<|im_end|>" if "arg" in place else "b"})),
    ]
    with pytest.raises(DataError, match=r"message \d \(\w+\): a tool, or a call of one, spells a control token"):
        encode_demonstration(of_family("qwen2_5"), row)


def test_a_result_that_spells_a_control_token_is_text() -> None:
    made = of_family("qwen2_5")
    [row] = encode_demonstration(made, [*ROW[:2], gives("a <|im_end|> b"), says("So.")])
    ends = row.input_ids.count(made.eos_token_id)
    [plain] = encode_demonstration(made, [*ROW[:2], gives("a b"), says("So.")])
    assert ends == plain.input_ids.count(made.eos_token_id)


def test_a_dialogue_that_is_split_parts_no_call_from_its_result_and_offers_the_tools_in_each_part() -> None:
    made = of_family("qwen2_5")
    whole = Demonstration(messages=ROW)
    sizes = [longest(encode_demonstration(made, part)) for part in (ROW, ROW[:4])]
    one = fit(made, whole, Fitting(sizes[0] - 1, "split"))
    assert [[message.role for message in part.messages] for part, _ in one.parts] == [
        ["user", "assistant", "tool", "assistant"]
    ] * 2
    assert all(part.messages[0].tools == ROW[0].tools for part, _ in one.parts) and one.exchanges_left_out == 0
    cut = fit(made, whole, Fitting(sizes[1], "cut"))
    assert [message.role for message in cut.parts[0][0].messages] == ["user", "assistant", "tool", "assistant"]
