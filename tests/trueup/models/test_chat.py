"""Conversations as tokens: over every template, what is trained is the row's text and what is asked, or refused."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import templates
from trueup.data.records import Demonstration, Message, parse_row
from trueup.errors import DataError, ModelError
from trueup.models.chat import (
    COMPOSED,
    IGNORED,
    SPELLED,
    SPLIT,
    completion_text,
    encode_completion,
    encode_demonstration,
    encode_prompt,
    sampled_ids,
)
from trueup.models.config import ModelConfig
from trueup.models.encoding import RefusedRows, at_once, encode_rows
from trueup.models.templates.choice import portable_template, set_template
from trueup.models.templates.ends import choice_of
from trueup.models.templates.rendered import STRIPPED, WITHOUT_REASONING

QUESTION = [Message(role="user", content="Say red.")]
ONE_TURN = [*QUESTION, Message(role="assistant", content="It is red.")]
DIALOGUE = [
    Message(role="system", content="Be brief."),
    *ONE_TURN,
    Message(role="user", content="And\nblue? "),
    Message(role="assistant", content=" It is blue.\n"),
]
Layout = tuple[str, str, bool]
"""Base, chat template, and whether its markers become tokens."""
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
def test_what_is_trained_is_the_text_of_every_turn_as_it_stands_and_its_end(
    tokenizer: Callable[..., Any], layout: Layout
) -> None:
    made = tokenizer(*layout)
    (row,) = encode_demonstration(made, DIALOGUE)
    assert trained_turns(made, row.labels) == [f"It is red.{made.eos_token}", f" It is blue.\n{made.eos_token}"]
    assert all(label in (IGNORED, token) for token, label in zip(row.input_ids, row.labels, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("conversation", [ONE_TURN, DIALOGUE], ids=["one turn", "dialogue"])
def test_a_policy_is_asked_in_the_tokens_that_it_was_trained_on(
    tokenizer: Callable[..., Any], layout: Layout, conversation: list[Message]
) -> None:
    made = tokenizer(*layout)
    (row,) = encode_demonstration(made, conversation)
    prompt = encode_prompt(made, conversation[:-1])
    finished = encode_completion(made, conversation[-1].content, finished=True)
    assert row.input_ids == prompt + finished and finished[-1] == made.eos_token_id
    assert [label for label in row.labels[len(prompt) :] if label != IGNORED] == finished
    unfinished = encode_completion(made, conversation[-1].content, finished=False)
    assert unfinished == finished[:-1] and made.eos_token_id not in unfinished


def test_a_turn_that_is_not_trained_is_read_alone(tokenizer: Callable[..., Any]) -> None:
    made = tokenizer("plain", "plain")
    turns = [DIALOGUE[1], DIALOGUE[2].model_copy(update={"trained": False}), *DIALOGUE[3:]]
    (row,) = encode_demonstration(made, turns)
    assert row.input_ids == encode_demonstration(made, DIALOGUE[1:])[0].input_ids
    assert trained_turns(made, row.labels) == [f" It is blue.\n{made.eos_token}"]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_bos_stands_once_at_the_start_where_the_tokenizer_adds_it_and_nowhere_else(
    tokenizer: Callable[..., Any], layout: Layout
) -> None:
    made = tokenizer(*layout)
    ids = encode_demonstration(made, DIALOGUE)[0].input_ids
    if layout[0] == "llama":
        assert (ids[0], ids.count(made.bos_token_id)) == (made.bos_token_id, 1)
    else:
        assert made.decode(ids).startswith(("System:", "<|im_start|>system"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_padding_is_not_eos_where_the_vocabulary_has_another_token_for_it(
    tokenizer: Callable[..., Any], layout: Layout
) -> None:
    made = tokenizer(*layout)
    only_eos = layout[0] == "plain" and not layout[2]  # its vocabulary has no special token but EOS
    assert made.pad_token_id is not None
    assert (made.pad_token_id == made.eos_token_id) == only_eos


def test_plain_and_chatml_lay_out_a_dialogue_as_documented(tokenizer: Callable[..., Any]) -> None:
    made = tokenizer("plain", "plain")
    assert made.decode(encode_demonstration(made, DIALOGUE)[0].input_ids) == (
        "System:\nBe brief.\n\nUser:\nSay red.\n\nAssistant:\nIt is red.<|endoftext|>\n\n"
        "User:\nAnd\nblue? \n\nAssistant:\n It is blue.\n<|endoftext|>"
    )
    made = tokenizer("plain", "chatml", True)
    assert made.decode(encode_demonstration(made, ONE_TURN)[0].input_ids) == (
        "<|im_start|>user\nSay red.<|im_end|>\n<|im_start|>assistant\nIt is red.<|im_end|>"
    )


def test_new_tokens_are_one_token_each_and_only_added_with_chatml(
    bases: Callable[[str], Path], tokenizer: Callable[..., Any]
) -> None:
    made = tokenizer("plain", "chatml", True)
    before = len(AutoTokenizer.from_pretrained(bases("plain")))
    assert len(made) == before + 2 and made.eos_token == "<|im_end|>"
    assert encode_prompt(made, QUESTION)[0] == made.convert_tokens_to_ids("<|im_start|>") >= before
    with pytest.raises(ModelError, match=r"set model\.chat_template: chatml with it"):
        tokenizer("plain", "plain", True)


def test_a_choice_says_what_was_chosen_and_why(bases: Callable[[str], Path]) -> None:
    def said(base: str, **config: Any) -> str:
        return set_template(AutoTokenizer.from_pretrained(bases(base)), ModelConfig(**config))

    assert said("plain") == (
        "chat template plain (the tokenizer of a base model has none), "
        "end of turn '<|endoftext|>' (the chat template writes it), "
        "pad is EOS (the vocabulary has no other token for it; masks are made from lengths, never from ids)"
    )
    assert said("chatml") == (
        "chat template own (the tokenizer brings it), end of turn '<|im_end|>' (the chat template writes it), "
        "pad '<|endoftext|>' (not EOS, so that EOS stays a label)"
    )
    assert said("llama", chat_template="chatml").startswith(
        "chat template chatml (as the config says), end of turn '</s>' (the chat template writes it), pad '<unk>'"
    )


# ---- Templates --------------------------------------------------------------------------------------------------


@pytest.fixture
def with_template(tmp_path: Path, bases: Callable[[str], Path]) -> Callable[..., Any]:
    """The llama-like tokenizer with a template of one's own."""

    def make(text: str, base: str = "llama") -> Any:
        file = tmp_path / "own.jinja"
        file.write_text(text, encoding="utf-8")
        made = AutoTokenizer.from_pretrained(bases(base))
        set_template(made, ModelConfig(chat_template=str(file)))
        return made

    return make


TURNS = (
    "{% for m in messages %}{{ m['role'] + ': ' + CONTENT + (eos_token if m['role'] == 'assistant' else '') + '\n' }}"
    "{% endfor %}{{ 'assistant: ' if add_generation_prompt }}"
)


def test_it_is_said_that_a_template_of_ones_own_leaves_out_a_token_that_the_tokenizer_puts_before_texts(
    with_template: Callable[..., Any],
) -> None:
    text = TURNS.replace("CONTENT", "m['content']")
    told = str(choice_of(with_template(text)))
    assert "it writes no '<s>', which this tokenizer puts before a text" in told and "{{ bos_token }}" in told
    for own in (with_template("{{ bos_token }}" + text), with_template(text, "plain")):
        assert "it writes no" not in str(choice_of(own))


def test_zero_of_many_random_dialogues_are_wrong_over_all_templates_that_trl_ships() -> None:
    """Short answers, outer white space, code, reasoning, late system turns, spelled control tokens."""
    total, kinds = Counter[str](), Counter[str]()
    for file in templates.shipped_templates():
        counts, lines = templates.count(templates.tiny_tokenizer(file.read_text(encoding="utf-8")), dialogues=12)
        assert counts["wrong"] == 0, (file.name, lines)
        total += counts
        kinds["exact" if counts["exact"] == 12 else "refused" if counts["refused"] == 12 else "both"] += 1
    assert total["wrong"] == 0 and kinds["exact"] >= 38, (
        "most are trained whole; the others refuse late system turns, or reasoning behind a closed block"
    )


def test_a_dialogue_whose_history_is_written_otherwise_is_trained_turn_by_turn_in_the_form_it_is_asked_in(
    with_template: Callable[..., Any],
) -> None:
    made = with_template(TURNS.replace("CONTENT", "m['content'].split('</think>')[-1].strip()"))
    said, told = ["<think>Hm.</think>\nRed. ", "Yes.", "No."], set[str]()
    turns = [one for text in said for one in (Message(role="user", content="Why? "), _answer(text))]
    rows = encode_demonstration(made, turns, told)
    assert told == {SPLIT, STRIPPED, WITHOUT_REASONING}
    assert [trained_turns(made, row.labels) for row in rows] == [[f"{said[0]}</s>"], ["Yes.</s>", "No.</s>"]]
    assert made.decode(rows[1].input_ids) == (
        "user: Why?\nassistant: Red.</s>\nuser: Why?\nassistant: Yes.</s>\nuser: Why?\nassistant: No.</s>"
    )


def _answer(text: str) -> Message:
    return Message(role="assistant", content=text)


def test_a_template_that_ends_only_the_last_turn_trains_each_as_it_is_asked(with_template: Callable[..., Any]) -> None:
    made = with_template(
        TURNS.replace("CONTENT", "m['content']").replace("== 'assistant'", "== 'assistant' and loop.last")
    )
    rows = encode_demonstration(made, DIALOGUE)
    assert [trained_turns(made, row.labels) for row in rows] == [["It is red.</s>"], [" It is blue.\n</s>"]]
    assert made.decode(rows[1].input_ids).startswith("system: Be brief.\nuser: Say red.\nassistant: It is red.\nuser: ")


@pytest.mark.parametrize(
    ("content", "told"),
    [("m['content']", set()), ("m['content'] | trim", {STRIPPED}), ("m['content'].rstrip()", {STRIPPED})],
)
def test_an_answer_is_trained_with_its_indentation_whatever_the_template_strips(
    with_template: Callable[..., Any], content: str, told: set[str]
) -> None:
    made, seen = with_template(TURNS.replace("CONTENT", content)), set[str]()
    row = json.loads(Path("tests/data/cases/rows/d_indented_code.jsonl").read_text().splitlines()[0])
    (encoded,) = encode_demonstration(
        made, [Message(role="user", content=row["prompt"]), _answer(row["completion"])], seen
    )
    assert trained_turns(made, encoded.labels) == ["    return a + b\n</s>"]
    assert seen == told, "the prompt ends with a line break"


REFUSED = {
    "an end of turn that is no token": (
        TURNS.replace("CONTENT", "m['content']").replace("eos_token", "'<end>'"),
        r"ends an assistant turn with '<end>', which is no token of this vocabulary.* set model\.chat_template",
    ),
    "another end for some": (
        TURNS.replace("CONTENT", "m['content']").replace(
            "eos_token", "(eos_token if messages|length < 4 else bos_token)"
        ),
        "ends an assistant turn with '<s>.*' here, and with '</s>' elsewhere",
    ),
    "no system turn": (
        "{% set messages = messages | rejectattr('role', 'equalto', 'system') | list %}"
        + TURNS.replace("CONTENT", "m['content']"),
        r"message 1 \(system\): the chat template leaves this turn out, 'Be brief\.'",
    ),
    "a system turn that raises": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + TURNS.replace("CONTENT", "m['content']"),
        r"refuses this conversation \(system, user\): System role not supported; change the row, or set model",
    ),
    "a variable that is not there": (
        TURNS.replace("CONTENT", "m.parts.text"),
        r"refuses this conversation \(system, user\): 'dict object' has no attribute 'parts'",
    ),
    "another text": (
        TURNS.replace("CONTENT", "m['content'] | upper"),
        r"message \d \(\w+\): the chat template .* text",
    ),
    "a shortened text": (
        TURNS.replace("CONTENT", "m['content'][:9]"),
        r"message 3 \(assistant\): the chat template writes another text than the row's, 'It is red",
    ),
    "a text that says what is done": (
        TURNS.replace("CONTENT", "m['content'].replace('brief', 'long')"),
        r"message 1 \(system\): the chat template writes another text than the row's, 'Be brief\.'",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_template_that_does_something_else_is_refused_with_what_it_did(
    with_template: Callable[..., Any], kind: str
) -> None:
    text, said = REFUSED[kind]
    with pytest.raises((DataError, ModelError), match=said):
        encode_demonstration(with_template(text), DIALOGUE)


def test_a_template_may_look_at_the_texts_move_them_and_write_them_twice(with_template: Callable[..., Any]) -> None:
    system = "{% for m in messages if m.role == 'system' %}{{ m.content + '\n' + m.content + '\n' }}{% endfor %}"
    polite = "{{ 'polite\n' if 'please' in messages | map(attribute='content') | join }}"
    made = with_template(system + polite + TURNS.replace("CONTENT", "m['content']"))
    turns = [*ONE_TURN, Message(role="system", content="Be rude."), Message(role="user", content="please")]
    assert made.decode(encode_prompt(made, turns)).startswith("Be rude.\nBe rude.\npolite\nuser: Say red.\n")


def test_a_system_text_before_the_last_question_alone_is_asked_and_trained_as_it_is_asked(
    with_template: Callable[..., Any],
) -> None:
    """As in Mistral 0.3, with a blank before an answer."""
    made = with_template(
        "{{ bos_token }}{% for m in messages if m.role != 'system' %}{% if m.role == 'user' %}[INST] "
        "{{ messages[0].content + '\n\n' if loop.last and messages[0].role == 'system' }}{{ m.content }}[/INST]"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    rows = encode_demonstration(made, [DIALOGUE[0], *ONE_TURN, QUESTION[0], _answer("Again.")])
    assert [made.decode(row.input_ids) for row in rows] == [
        "<s>[INST] Be brief.\n\nSay red.[/INST] It is red.</s>",
        "<s>[INST] Say red.[/INST] It is red.</s>[INST] Be brief.\n\nSay red.[/INST] Again.</s>",
    ]


def test_a_template_with_a_syntax_error_is_refused_with_its_line(with_template: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"model\.chat_template: the chat template .*own\.jinja is no Jinja: line 2: "):
        with_template("{% for m in messages %}\n{{ m['content' }}{% endfor %}")
    with pytest.raises(ModelError, match="is no Jinja: line 1: No filter named 'shout'"):
        with_template("{{ messages[0].content | shout }}")


def test_a_tokenizer_without_eos_and_a_template_that_is_nothing_known_are_refused(bases: Callable[[str], Path]) -> None:
    made = AutoTokenizer.from_pretrained(bases("plain"))
    with pytest.raises(ModelError, match=r"'chatlm' is neither auto, nor alpaca, chatml, .* zephyr, nor a file"):
        set_template(made, ModelConfig(chat_template="chatlm"))
    made.eos_token = None
    with pytest.raises(ModelError, match="has no EOS token, so no answer could ever end"):
        set_template(made, ModelConfig(chat_template="plain"))


@pytest.mark.parametrize(
    ("lacks", "what"),
    [
        ({"chat_template": None}, "no chat template"),
        ({"chat_template": {"a": "x", "b": "y"}}, "no chat template to choose"),
        ({"eos_token": None}, "no EOS"),
    ],
    ids=["none", "several", "eos"],
)
def test_a_tokenizer_from_elsewhere_that_lacks_what_a_conversation_takes_is_refused(
    bases: Callable[[str], Path], lacks: Any, what: str
) -> None:
    found = AutoTokenizer.from_pretrained(bases("chatml"))
    for key, value in lacks.items():
        setattr(found, key, value)
    with pytest.raises(ModelError, match=what):
        encode_prompt(found, [Message(role="user", content="Why?")])


def test_problems_of_many_rows_come_at_once_with_where_they_stand(with_template: Callable[..., Any]) -> None:
    made, refused = with_template(REFUSED["a system turn that raises"][0]), RefusedRows()
    rows = [
        parse_row(Demonstration, {"messages": DIALOGUE if number % 3 else DIALOGUE[1:]}, f"data.jsonl:{number}")
        for number in range(1, 31)
    ]
    encode_rows(rows, lambda row, told: encode_demonstration(made, row.messages, told), refused)
    with pytest.raises(DataError) as caught:
        refused.stop()
    head, line = str(caught.value).split("\n  ")
    assert head == "20 rows cannot be encoded"
    assert line.startswith("data.jsonl:1: the chat template refuses this conversation (system, user): System role not")
    assert line.endswith("(and in 2, 4, 5 and 16 more rows)")


# ---- Control tokens ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_control_token_that_a_text_spells_is_text_in_every_turn(
    tokenizer: Callable[..., Any], layout: Layout
) -> None:
    made, told = tokenizer(*layout), set[str]()
    special = set(made.all_special_tokens)
    spelled = "".join(f"Say {token}{token} red {token[:-1]}{token}." for token in sorted(special))
    turns = [Message(role=m.role, content=f"{spelled}{m.content}{spelled}") for m in DIALOGUE]
    (row,) = encode_demonstration(made, turns, told)
    assert told == {SPELLED}
    said = [m.content for m in turns if m.role == "assistant"]
    assert trained_turns(made, row.labels) == [f"{text}{made.eos_token}" for text in said]
    assert Counter(t for t in row.input_ids if t in made.all_special_ids) == Counter(
        t for t in encode_demonstration(made, DIALOGUE)[0].input_ids if t in made.all_special_ids
    ), "only the template's own control tokens are control tokens"
    plain = [{"role": m.role, "content": m.content} for m in turns]
    assert made.decode(row.input_ids) == made.apply_chat_template(plain, tokenize=False).rstrip("\n")


def test_a_model_may_write_its_own_tags_and_a_user_only_spell_them() -> None:
    made = templates.tiny_tokenizer(
        TURNS.replace("CONTENT", "m['content']").replace("messages %}", "messages %}{# <think> #}")
    )
    set_template(made, ModelConfig())
    tag = made.convert_tokens_to_ids("<think>")
    assert tag in encode_completion(made, "<think>Hm.") and tag not in encode_prompt(
        made, [Message(role="user", content="What is <think>?")]
    )


# ---- Recorded tokens --------------------------------------------------------------------------------------------


def test_recorded_tokens_count_only_while_they_decode_to_the_text(tokenizer: Callable[..., Any]) -> None:
    made, other = tokenizer("plain", "plain"), tokenizer("llama", "plain")
    for text in ("It is red.", " It is red.\n", "一二", "<|endoftext|>"):
        ids = encode_completion(made, text)
        assert sampled_ids(made, text, True, ids) == ids and completion_text(made, ids[:-1]) == text
        assert sampled_ids(made, text, False, ids[:-1]) == ids[:-1]
        assert sampled_ids(made, text, False, ids) is None and sampled_ids(made, text, True, ids[:-1]) is None
        assert sampled_ids(made, f"{text}.", True, ids) is None and sampled_ids(other, text, True, ids) is None
    longer = encode_completion(made, "It", finished=False) + encode_completion(made, " is", finished=False)
    assert sampled_ids(made, "It is", False, longer) == longer, "as it was sampled, not as it would be encoded"
    for broken in (None, [], [len(made)], [-1], [10**9]):
        assert sampled_ids(made, "It is red.", False, broken) is None


@pytest.mark.parametrize("text", ["It is red.", " It", "  It", "\n\tIt ", "一 🙂", "a</s><s>b", "It is ", "é"])
def test_a_tokenizer_that_puts_a_space_before_a_text_still_writes_answers_exactly(text: str) -> None:
    made = sentencepiece_like()
    ids = encode_completion(made, text)
    assert made.decode([made.eos_token_id, *ids]) == f"</s>{text}</s>"
    spelled = [Message(role="user", content=f"re<s>d{text}"), _answer(text), *QUESTION, _answer(text)]
    assert templates.faults(made, spelled) == []
    (row,) = encode_demonstration(made, [*QUESTION, _answer(text)])
    assert row.input_ids[: -len(ids)] == made.apply_chat_template(
        [{"role": "user", "content": "Say red."}], add_generation_prompt=True, return_dict=False
    )


def sentencepiece_like() -> Any:
    """As of Llama 2: blanks are ▁, one is put before a text, what it has no piece for is bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Itsared.ab", "It", "▁It"]
    backend = Tokenizer(
        models.BPE(
            {piece: i for i, piece in enumerate(pieces)},
            [("I", "t"), ("▁", "It")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = "{{ bos_token }}" + TURNS.replace("CONTENT", "m['content']").replace(": '", ":'")
    set_template(made, ModelConfig())
    return made


def test_what_a_tokenizer_composes_is_told_and_what_it_cannot_write_is_refused(bases: Callable[[str], Path]) -> None:
    from tokenizers import normalizers

    made, told = AutoTokenizer.from_pretrained(bases("plain")), set[str]()
    made.backend_tokenizer.normalizer = normalizers.NFC()
    set_template(made, ModelConfig(chat_template="plain"))
    decomposed = "caf\u0065\u0301"
    encode_demonstration(made, [Message(role="user", content=decomposed), _answer(decomposed)], told)
    assert told == {COMPOSED}
    made.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(
        DataError, match=r"message 2 \(assistant\): this tokenizer cannot write an answer: it turns 'It is Red"
    ):
        encode_demonstration(made, [Message(role="user", content="why"), _answer("It is Red.")])
    with pytest.raises(DataError, match=r"message 1 \(user\): this tokenizer cannot write its text, 'Why\?'"):
        encode_prompt(made, [Message(role="user", content="Why?")])


@pytest.mark.parametrize("tag", ["{% generation %}|{% endgeneration %}", "{%- generation -%}|{%-endgeneration-%}"])
@pytest.mark.parametrize("trim", [True, False])
def test_a_portable_template_renders_the_same_in_plain_jinja(
    bases: Callable[[str], Path], tag: str, trim: bool
) -> None:
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


# ---- Many at once -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", templates.named_templates(), ids=lambda file: file.stem)
def test_what_is_encoded_at_once_is_what_is_encoded_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = templates.tiny_tokenizer(file.read_text(encoding="utf-8"))
    set_template(made, ModelConfig())
    control = [str(token) for token in made.all_special_tokens]
    dialogues = [templates.dialogue(random.Random(n), control) for n in range(30)]

    def encoded(messages: list[Message]) -> tuple[Any, set[str]]:
        changes: set[str] = set()
        try:
            return encode_demonstration(made, messages, changes), changes
        except (DataError, ModelError) as error:
            return f"{type(error)} {error}", changes

    alone = [encoded(messages) for messages in dialogues]
    refused = [messages for messages, (rows, _) in zip(dialogues, alone, strict=True) if isinstance(rows, str)]
    taken = [messages for messages in dialogues if messages not in refused]
    for batch in (taken, dialogues):  # the template may refuse one of these, and with it what is rendered at once
        with at_once(made, batch):
            assert [encoded(messages) for messages in dialogues] == alone
    plain = [messages for messages in taken if not encoded(messages)[1]]
    with at_once(made, plain), monkeypatch.context() as patched:
        patched.setattr(type(made), "_encode_plus", None)
        patched.setattr(type(made), "_decode", None)
        patched.setattr(type(made), "apply_chat_template", None)
        assert plain and all(encoded(messages)[0] for messages in plain), "nothing is asked a second time"


def test_a_tokenizer_without_a_template_says_so_of_each_row_also_at_once(tokenizer: Callable[..., Any]) -> None:
    made = tokenizer("plain")
    made.chat_template = None
    with at_once(made, [ONE_TURN]), pytest.raises(ModelError, match="has no chat template"):
        encode_demonstration(made, ONE_TURN)
