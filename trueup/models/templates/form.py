"""The form in which a chat template asks for an answer.

Families publish templates that write a finished answer in another form than they ask for one, change with the day, or
think unless they are told not to. `prepared` settles this once, in the template's own text. Whatever renders the saved
template (training, sampling, a comparison, an export, another engine) then asks in the same form:

    date        `strftime_now` is replaced by the date of `model.template_date`
    switches    `model.chat_template_kwargs`, and thinking on or off, become the defaults of the template's variables
    system      with `model.fold_system` a system text is written at the head of the next user turn
    parts       a template that reads content only as a list of parts is given one
    opening     what the template writes between its question and an answer (an empty <think> block, a channel) becomes
                the end of the question, since it is the template's text and not the answer's

The template's end of turn is read off what it writes behind an answer. No torch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import jinja2
import jinja2.meta

from trueup.data.records import Message
from trueup.errors import DataError, ModelError, TrueupError, did_you_mean
from trueup.models.config import ModelConfig
from trueup.models.templates.block import OPEN, TAG, reasoning_block
from trueup.models.templates.ends import section_of
from trueup.models.templates.rendered import alike, mark

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_USER, _ANSWER, _NEXT, _SYSTEM = mark("user", 0), mark("assistant", 1), mark("user", 2), mark("system", 3)


@dataclass
class Prepared:
    """A chat template in the form in which it is used."""

    text: str
    end: str | None
    """The token that it writes behind an answer; None if it writes none."""
    remarks: list[str] = field(default_factory=list)
    """What was settled, and why."""


def prepared(tokenizer: PreTrainedTokenizerBase, text: str, config: ModelConfig, stops: Collection[int]) -> Prepared:
    """The template with its date, switches and opening settled (see above), and its end of turn.

    stops   ids at which the model stops by its own configuration

    Raises ModelError if a switch is no variable of the template, if thinking or a date is asked for and the template
    has none, or if the template ends a turn with a text that is no token.
    """
    if config.thinking and not TAG.search(text):
        raise ModelError(
            f"{config.key('thinking')}: the chat template writes no block of reasoning (<think>), so there is none to "
            "turn on: leave the key out"
        )
    form = Prepared(text, None)
    _fix_date(form, config)
    _set_switches(tokenizer, form, config)
    _give_parts(tokenizer, form)
    if config.fold_system:
        form.text = f"{_FOLDED}\n{form.text}"
        why = f"({config.section}.fold_system)" if config.section else "(its chat template has no system turn)"
        form.remarks.append(f"system text is written into the next user turn {why}")
    _ask_with_opening(tokenizer, form, config)
    form.end = _end_of_turn(tokenizer, form.text, config, stops)
    return form


def otherwise(section: str | None) -> str:
    """What to do about a chat template that does not serve, whose choice stands in this section."""
    return f"set {section}.chat_template to chatml or plain" if section else "mend its tokenizer's chat template"


def with_tools(section: str | None) -> str:
    """What to do about a chat template that does not take a conversation with tools: the named ones write none."""
    return f"give {section}.chat_template a file with one that writes tools" if section else otherwise(section)


def without_system(section: str | None) -> str:
    """What to do about a chat template that takes no system turn here."""
    fold = f"set {section}.fold_system: true, which writes it into the next user turn"
    return fold if section else otherwise(section)


def question(tokenizer: PreTrainedTokenizerBase, text: str) -> list[Message]:
    """A question that the template takes: with a system turn before it if it takes none alone."""
    return [_USER] if rendered(tokenizer, text, [_USER], asks=True) else [_SYSTEM, _USER]


def system_question(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the template writes the text of a system turn before a question, given as text or as parts."""
    forms = (text, f"{_PARTS}\n{text}")
    return any(_SYSTEM.content in rendered(tokenizer, form, [_SYSTEM, _USER], asks=True) for form in forms)


def rendered(tokenizer: PreTrainedTokenizerBase, text: str, messages: list[Message], asks: bool, **kwargs: Any) -> str:
    """What the template writes; empty if it refuses these messages."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return tokenizer.apply_chat_template(
            turns, chat_template=text, add_generation_prompt=asks, tokenize=False, **kwargs
        )
    except Exception:  # a template is third-party code; its rows are refused one by one, with its message
        return ""


# ---- Date, switches, system, parts ------------------------------------------------------------------------------

_NOW = re.compile(r"strftime_now\(\s*(?:format\s*=\s*)?(['\"])([^'\"]*)\1\s*\)")
_HAS_NOW = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
"""A template asks so whether its engine knows the date. It is known now, whatever the engine."""


def _fix_date(form: Prepared, config: ModelConfig) -> None:
    text = _NOW.sub(lambda call: repr(config.template_date.strftime(call[2])), form.text)
    text = _HAS_NOW.sub(lambda test: "false" if test[1] else "true", text)
    if "strftime_now" in text:
        raise ModelError(
            f"{config.key('chat_template')}: the chat template writes today's date in a form that cannot be fixed "
            f"(strftime_now with more than a plain format): {otherwise(config.section)}, or give it a copy of the "
            "template that names a date"
        )
    if text != form.text:
        form.text = text
        form.remarks.append(f"its date is always {config.template_date} ({config.key('template_date')})")
    elif config.template_date != ModelConfig.model_fields["template_date"].default:
        raise ModelError(f"{config.key('template_date')}: the chat template writes no date: leave the key out")


_THINKING = ("enable_thinking", "thinking")
"""Variables by which the templates of Qwen, GLM, Nemotron, Granite and DeepSeek turn reasoning on and off."""

_RESERVED = (
    "messages",
    "add_generation_prompt",
    "tools",
    "documents",
    "bos_token",
    "eos_token",
    "pad_token",
    "unk_token",
)


def _set_switches(tokenizer: PreTrainedTokenizerBase, form: Prepared, config: ModelConfig) -> None:
    values: dict[str, Any] = {}
    for name in config.chat_template_kwargs:
        key = f"{config.key('chat_template_kwargs')}.{name}"
        if name in _THINKING:
            raise ModelError(f"{key}: set {config.key('thinking')}, which keeps reasoning apart, too")
        if name in _RESERVED:
            raise ModelError(f"{key}: is set wherever a template is rendered; leave it out")
        if name not in (known := _variables(form.text)):
            raise ModelError(f"{key}: the chat template has no such variable{did_you_mean(name, known)}")
    asked = question(tokenizer, form.text)
    usual = rendered(tokenizer, form.text, asked, asks=True)
    for name in _THINKING:
        wish = {name: config.thinking}
        if name in form.text and rendered(tokenizer, form.text, asked, asks=True, **wish) != usual:
            values |= wish
            form.remarks.append(
                f"thinking is {'on' if config.thinking else 'off'} ({name}, by {config.key('thinking')})"
            )
    values |= config.chat_template_kwargs
    form.text = "".join(f"{_default(name, value)}\n" for name, value in values.items()) + form.text


def _variables(text: str) -> list[str]:
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(text)
    except jinja2.TemplateSyntaxError:  # told with its line where the template is chosen
        return []
    return sorted(jinja2.meta.find_undeclared_variables(parsed))


def _default(name: str, value: Any) -> str:
    return f"{{%- set {name} = {name} if {name} is defined else {_literal(value)} %}}"


def _literal(value: Any) -> str:
    """A value as every engine's Jinja reads it."""
    return json.dumps(value, ensure_ascii=False)


_FOLDED = (
    "{%- set folded = namespace(turns=[], system='') %}{%- for turn in messages %}{%- if turn['role'] == 'system' %}"
    "{%- set folded.system = folded.system + turn['content'] + '\\n\\n' %}"
    "{%- elif turn['role'] == 'user' and folded.system %}"
    "{%- set folded.turns = folded.turns + [{'role': 'user', 'content': folded.system + turn['content']}] %}"
    "{%- set folded.system = '' %}{%- else %}{%- set folded.turns = folded.turns + [turn] %}{%- endif %}{%- endfor %}"
    "{%- if folded.system %}{%- set folded.turns = folded.turns + [{'role': 'system', 'content': folded.system}] %}"
    "{%- endif %}"
    "{%- set messages = folded.turns %}"
)
_PARTS = (
    "{%- set parted = namespace(turns=[]) %}{%- for turn in messages %}{%- set parted.turns = parted.turns + "
    "[{'role': turn['role'], 'content': [{'type': 'text', 'text': turn['content']}]} if turn['content'] is string "
    "else turn] %}{%- endfor %}{%- set messages = parted.turns %}"
)


def _give_parts(tokenizer: PreTrainedTokenizerBase, form: Prepared) -> None:
    with_parts = f"{_PARTS}\n{form.text}"
    sign = _USER.content
    if sign not in rendered(tokenizer, form.text, [_USER], asks=True) and sign in rendered(
        tokenizer, with_parts, [_USER], asks=True
    ):
        form.text = with_parts
        form.remarks.append("its content is written as a list of parts, the only form that it reads")


# ---- Opening ----------------------------------------------------------------------------------------------------


def _ask_with_opening(tokenizer: PreTrainedTokenizerBase, form: Prepared, config: ModelConfig) -> None:
    opening = _opening(tokenizer, form, config)
    if not opening.strip(" "):  # a blank before an answer is a part of its first token, see trueup.models.chat
        return
    form.text = (
        form.text.removesuffix("\n") + f"{{%+ if add_generation_prompt %}}{{{{ {_literal(opening)} }}}}{{% endif %}}\n"
    )
    form.remarks.append(f"an answer is asked for with {opening!r}, which the template writes before it")


def _opening(tokenizer: PreTrainedTokenizerBase, form: Prepared, config: ModelConfig) -> str:
    asked = question(tokenizer, form.text)
    ask = rendered(tokenizer, form.text, asked, asks=True)
    last = rendered(tokenizer, form.text, [*asked, _ANSWER], asks=False).partition(_ANSWER.content)[0]
    if tag := OPEN.search(ask):
        if config.thinking:
            return ""
        # The template thinks before every answer, and has no switch. Its reasoning is closed before it begins.
        return _closing(tag)
    shared = alike(ask, last)
    between = last[shared:]
    if config.thinking and TAG.search(between):
        return ""  # the model writes it itself
    return between if shared == len(ask) else ""


def _closing(tag: re.Match[str]) -> str:
    """The rest of an empty block of reasoning, as Qwen 3 writes it: <think>, two line breaks, </think>, two more."""
    breaks = tag[0].count("\n")
    return "\n" * max(0, 2 - breaks) + f"</{tag[1]}>\n\n"


# ---- End of turn ------------------------------------------------------------------------------------------------


def _end_of_turn(
    tokenizer: PreTrainedTokenizerBase, text: str, config: ModelConfig, stops: Collection[int]
) -> str | None:
    """The token that the template writes behind an answer, at the end of a conversation or before another turn."""
    asked = question(tokenizer, text)
    last = rendered(tokenizer, text, [*asked, _ANSWER], asks=False).partition(_ANSWER.content)[2].lstrip()
    if end := token_at_start(tokenizer, last):
        return end
    if last.rstrip():
        raise ModelError(
            f"{config.key('chat_template')}: the chat template ends an assistant turn with {last[:20].rstrip()!r}, "
            f"which is no token of this vocabulary, so the model would never learn to stop: {otherwise(config.section)}"
        )
    earlier = rendered(tokenizer, text, [*asked, _ANSWER, _NEXT], asks=False).partition(_ANSWER.content)[2].lstrip()
    end = token_at_start(tokenizer, earlier)
    # GLM ends a turn with the token that begins the next one. That it stops there, only its configuration says.
    begins = rendered(tokenizer, text, asked, asks=True).partition(_USER.content)[0]
    stops_there = end and tokenizer.convert_tokens_to_ids(end) in {*stops, tokenizer.eos_token_id}
    return end if end and (stops_there or end not in begins) else None


_MARKER = re.compile(r"<[^<>\s]{1,40}>|\[/?[A-Z_]{1,20}\]")


def token_at_start(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The longest control token that a text begins with: an added one, or a marker in the vocabulary."""
    marker = _MARKER.match(text)
    if marker and marker[0] in tokenizer.get_vocab():
        return marker[0]
    control = {token.content for token in tokenizer.added_tokens_decoder.values()} | set(tokenizer.all_special_tokens)
    return max((token for token in control if token and text.startswith(token)), key=len, default=None)


def takes_folding(template: str) -> bool:
    """Whether `model.fold_system` would change the template: it does not fold yet."""
    return _FOLDED not in template


# ---- Whether a conversation has this form -----------------------------------------------------------------------


def blank_of(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """What the template writes between its prompt and an answer, if that is a blank; else nothing."""
    asked = question(tokenizer, template)
    ask = rendered(tokenizer, template, asked, asks=True)
    before = rendered(tokenizer, template, [*asked, _ANSWER], asks=False).partition(_ANSWER.content)[0]
    between = before.removeprefix(ask) if before.startswith(ask) else ""
    return between if between and not between.strip(" ") else ""


def form_error(
    tokenizer: PreTrainedTokenizerBase,
    blank: str,
    prompt: Sequence[Message],
    text: str,
    render: Callable[[PreTrainedTokenizerBase, Sequence[Message], bool], str],
) -> TrueupError | None:
    """The error of a template that writes an answer with more before it than its prompt, or with another end than the
    tokenizer's. It may write it rightly either at the end of a conversation or before another turn.

    A prompt may have more than stands before an answer. A template that thinks leaves its block out of turns that are
    answered, and Mistral's writes the system text before the last question only.

    text    the rendered prompt
    render  renders messages, with the template's request for an answer or without; raises DataError if it refuses them
    """
    answer, turn = mark("assistant", len(prompt)), mark("user", len(prompt) + 1)
    last = render(tokenizer, [*prompt, answer], False)
    try:
        earlier = render(tokenizer, [*prompt, answer, turn], False)
    except DataError:
        earlier = ""
    thinks = reasoning_block(tokenizer) is not None
    advice = otherwise(section_of(tokenizer))
    errors = [_error_before(text, one, answer.content, blank, thinks, advice) for one in (last, earlier) if one]
    if all(errors):
        return errors[0]
    behind = last.partition(answer.content)[2].lstrip()
    if behind and not behind.startswith(str(tokenizer.eos_token)):
        return ModelError(
            f"the chat template ends an assistant turn with {behind[:20]!r} here, and with {tokenizer.eos_token!r} "
            f"elsewhere, so the model would not learn when to stop: {advice}"
        )
    return None


def _error_before(prompt: str, text: str, answer: str, blank: str, thinks: bool, advice: str) -> ModelError | None:
    """The error of a rendered conversation that has more between prompt and answer than the template's blank, or than
    the empty block that it writes before an answer without reasoning, where the model writes that itself."""
    before = text.partition(answer)[0]
    shared = alike(prompt, before)
    rest = before[shared:]
    if rest in ("", blank) or (shared < len(prompt) and prompt.endswith(rest.removesuffix(blank))):
        return None
    if thinks and TAG.search(rest) and not TAG.sub("", rest).strip():
        return None
    return ModelError(
        f"the chat template asks for an answer with {prompt[shared:][-60:]!r}, and writes {rest[:60]!r} before one; "
        f"the model would be prompted in other tokens than it was trained on: {advice}, or give it a copy of the "
        "template that writes both alike"
    )
