"""What the columns of a row mean, and the keys of a message: the one place that says so.

A converter reads columns by name (`Columns`), whatever their case: "Input", "chosen-response" and "systemPrompt" are
`input`, `chosen_response` and `system_prompt`. What it left unread is settled here, by what the name is known to mean:

    honoured     SYSTEM and HISTORY come before the conversation; LABELS, WEIGHTS, EXCLUDED and KEPT say that a row, or
                 an assistant turn, is not to be imitated
    refused      tools, images, reasoning and whatever else Trueup cannot give to a model, if it holds something;
                 a second question, context or answer that says other things than the conversation does; and a mark
                 against a row (MARKED, SPLITS) of which nobody can know what is to follow from it
    ignored      everything else, counted by name: `Ledger.ignored`; so is what the user names in `ignore_columns`

An empty value (null, "", [], {}, false, 0, or JSON text of these) says nothing, whatever its column, but for flags.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from trueup.data.jsonl import cut, shown

Use = Literal["demonstrations", "prompts", "preferences"]
Values = dict[str, Any]
T = TypeVar("T")

# ---- Names ------------------------------------------------------------------------------------------------------

CONVERSATIONS = "messages conversations conversation dialogue dialog chat".split()
QUESTIONS = "instruction question query prompt problem user_prompt user_message user_input user_query".split()
QUESTIONS += "inputs input user human".split()
"""What is asked, in one column; of several the first is the question."""
GIVEN = "input context contexts article passage passages document documents paragraph background ctx".split()
GIVEN += "source_text reference_text".split()
"""What the question is about; it is asked behind the question."""
NO_INPUT = ("<noinput>", "<no input>", "<no_input>")
"""What self-instruct writes where nothing is given."""
SYSTEM = "system system_prompt system_message system_instruction system_instructions sys_prompt sys".split()
SYSTEM += "preprompt pre_prompt developer developer_prompt developer_message".split()
HISTORY = "history chat_history conversation_history dialogue_history dialog_history message_history".split()
HISTORY += "previous_messages previous_turns prior_turns past".split()
CHOICES = "choices options answer_choices endings".split()
ANSWERS = "output response completion reply assistant bot gpt generation generated_solution".split()
ANSWERS += "assistant_response model_response".split()
"""What is to be imitated."""
REFERENCES = "solution answer target targets correct_answer answer_key".split()
"""Imitated where a row has nothing of ANSWERS; beside it, a reference to check against, and ignored."""
CHOSEN = "chosen chosen_response chosen_answer chosen_output preferred preferred_output preferred_response".split()
REJECTED = "rejected rejected_response rejected_answer rejected_output non_preferred non_preferred_output".split()
REJECTED += "non_preferred_response dispreferred dispreferred_output dispreferred_response".split()
TEXTS = ["text"]
ANNOTATORS = "annotator annotator_id judge worker labeler labeller rater".split()

LABELS = "label kto_tag kto_label is_chosen is_good is_desirable desirable is_preferred is_accepted accepted".split()
LABELS += (
    "thumbs_up thumbs liked upvoted good positive is_positive feedback approved is_correct correct is_valid".split()
)
"""Whether an answer is one to imitate: data for KTO and its like."""
WEIGHTS = "weight loss_weight sample_weight train trained trainable training is_trained do_train loss loss_mask".split()
WEIGHTS += "has_loss compute_loss train_on use_for_training".split()
"""Of an assistant turn, or of a row: 0 or false carries no loss."""
NOT_TRAINED = "masked ignore ignored exclude excluded no_loss skip".split()
"""The same the other way round."""
_LOSS = {*WEIGHTS, *NOT_TRAINED}
UNCLEAR_WEIGHT = re.compile(r"(^|_)(train(ed|able|ing)?|loss|weight|mask(ed)?|supervised?|learn|backprop)(_|$)")
"""Other names of a yes or no that may say so: whether yes is a weight of 1 or of 0 cannot be known. What begins with
`in_`, such as `in_gsm8k_train`, says where a row was found."""
EXCLUDED = "deleted delete removed remove discarded discard dropped drop rejected reject omitted omit excluded".split()
EXCLUDED += "exclude skipped skip ignored ignore filtered_out unusable aborted cancelled canceled".split()
"""A yes takes the row out."""
KEPT = "kept keep included include retained retain use usable selected".split()
"""A no takes the row out."""
BAD = "bad invalid incorrect wrong unacceptable undesirable failed".split()
"""A yes says that the answer is none to imitate, as a no of LABELS does."""
GOOD = "good valid correct accepted acceptable approved desirable positive passed".split()
MARKED = (
    "flagged spam toxic nsfw harmful unsafe offensive hateful hate abusive duplicate duplicated hallucinated".split()
)
MARKED += "hallucination corrupt corrupted broken garbage junk low_quality contaminated needs_review blocked".split()
MARKED += "blacklisted hidden archived disabled suspicious poisoned error errored".split()
"""A yes is a mark against the row, and whether it is to be used all the same cannot be known."""
CLEAN = "safe clean sfw".split()
"""The same of a no."""
SPLITS = "split data_split dataset_split subset partition fold set".split()
_OTHER_SPLIT = "test testing validation valid val dev eval evaluation heldout held_out holdout hold_out".split()
"""Values of SPLITS for rows that nobody means to train on."""
_SIDES_TOO = ("rejected", "selected")
"""Of these names only true and false is a flag: anything else is an answer, or says which one is better."""
_NOT = ("not", "dont", "never", "non")
_BEFORE_A_FLAG = "is was are be been has to should must do marked mark flag as row sample example item".split()
_BEHIND_A_FLAG = "flag row sample example item entry it this from for training train at on by reason".split()
CUT = "truncated is_truncated cut_off is_cut_off incomplete is_incomplete".split()
WHOLE = "finished is_finished complete is_complete".split()
"""A no says that the answer was cut."""
STOPS = "finish_reason stop_reason done_reason".split()
_AT_THE_LIMIT = {"length", "max_length", "max_tokens"}
STATES = "status state review_status tree_state decision annotation_status".split()
OUT = "discarded rejected reject deleted removed excluded aborted cancelled canceled draft incomplete failed".split()
"""Values of STATES that take a row out; so do those that begin with one of them and `_`."""
JUDGED = "quality grade rating judgement judgment assessment evaluation review qa outcome verdict".split()
_POOR = "bad poor very_bad very_poor terrible wrong incorrect invalid unacceptable rejected fail failed low".split()
_POOR += "very_low low_quality spam garbage junk toxic unsafe harmful flagged needs_review needs_fix".split()
"""Values of JUDGED, and of STATES, that are a mark against the row."""

UNSUPPORTED = re.compile(
    r"(^|_)(images?|imgs?|photos?|pictures?|screenshots?|audios?|speech|wav|videos?|pixel_values|attachments?)(_|$)"
    r"|(^|_)(tools?|functions|function_?calls?|api_calls?)(_|$)"
    r"|^(chat_template(_kwargs)?|train_detail|mask)$"
)
HARMLESS = ("parallel_tool_calls", "tool_choice")
"""Settings of tools, which mean nothing without tools."""
OF_A_MESSAGE = "refusal recipient channel".split()
"""Keys of a message that name another kind of speech; `channel: final` is the answer."""
REASONING = re.compile(r"(^|_)(reasoning|thinking|think|thoughts?|cot|chain_of_thought|rationale|scratchpad)(_|$)")
RELATED = re.compile(
    r"(^|_)(system|sys|history|contexts?|passages?|article|choices|options"
    r"|personas?|personality|personalities|characters?|role_?play|few_?shots?|shots|exemplars?|demonstrations?)(_|$)"
    r"|^(bot|char)_(description|definition)s?$"
)
"""Names that are like those of a prompt's parts: nobody can know where what they hold belongs."""
OF_A_QUESTION = re.compile(
    r"(^|_)(knowledge|evidences?|facts?|snippets?|examples?|hints?|rules|guidelines?|constraints|requirements"
    r"|instructions|premise|hypothesis|scenario|situation|search_results|retrieved\w*|tables?|schema|starter_code"
    r"|post|selftext|body|prefix|suffix|preamble|previous|preceding|definitions?|task_(description|instruction|prompt))$"
)
"""Beside a question they may be what it is about; beside a conversation they are remarks on it."""
OF_AN_ANSWER = ("reference", "references")
"""Beside a question and its answer they may be what it is about, or what the answer is checked against."""
_ABOUT = re.compile(
    r"_(type|effort|level|tokens?|model|length|len|score|source|language|lang|ids?|count|num|title|name|url|fingerprint)$"
)
_CHOICE = re.compile(r"^(option|choice|answer_choice|ending|opt|op)_?([a-h]|\d)$")
FOREIGN_ROLES = "tool function function_call tool_call tool_response observation ipython environment".split()


IGNORE = "list the column in ignore_columns"
"""The way out of a refusal: the user says that a column changes nothing."""
_TEXTS = {*QUESTIONS, *ANSWERS, *REFERENCES, "input"}
"""Columns whose text is asked or imitated as it stands, whatever it looks like."""


@lru_cache(maxsize=10_000)
def canonical(name: str) -> str:
    """`chosen-response`, `Chosen Response` and `chosenResponse` are `chosen_response`."""
    name = re.sub(r"[\s\-.?!:]+", "_", name.strip().strip("\ufeff?!: "))
    return (name if "_" in name else re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)).lower()


@lru_cache(maxsize=10_000)
def is_unsupported(name: str) -> bool:
    """Whether a column holds what Trueup cannot give to a model."""
    return bool(UNSUPPORTED.search(name)) and name not in HARMLESS


@lru_cache(maxsize=10_000)
def is_reasoning(name: str) -> bool:
    """Whether a column holds what was thought before an answer, and not what kind or how long it was."""
    return bool(REASONING.search(name)) and not _ABOUT.search(name)


@lru_cache(maxsize=10_000)
def is_unclear_weight(name: str) -> bool:
    return bool(UNCLEAR_WEIGHT.search(name)) and name not in _LOSS and not name.startswith("in_")


class Flag(NamedTuple):
    """What a yes or no under a name says of a row."""

    kind: Literal["out", "bad", "marked"]
    when: bool
    """The value that says so."""


_FLAGS: dict[str, Flag] = dict.fromkeys(EXCLUDED, Flag("out", True)) | dict.fromkeys(KEPT, Flag("out", False))
_FLAGS |= dict.fromkeys(BAD, Flag("bad", True)) | dict.fromkeys(GOOD, Flag("bad", False))
_FLAGS |= dict.fromkeys(MARKED, Flag("marked", True)) | dict.fromkeys(CLEAN, Flag("marked", False))


@lru_cache(maxsize=10_000)
def flag(name: str) -> Flag | None:
    """What a yes or no under a name says: `is_toxic`, `should_be_dropped`, `not_usable`, `exclude_from_training`."""
    if name in WEIGHTS:
        return None
    words, negated = name.split("_"), False
    while len(words) > 1 and (words[0] in _BEFORE_A_FLAG or words[0] in _NOT):
        negated ^= words.pop(0) in _NOT
    while len(words) > 1 and "_".join(words) not in _FLAGS and words[-1] in _BEHIND_A_FLAG:
        words.pop()
    found = _FLAGS.get("_".join(words))
    return found._replace(when=not found.when) if found and negated else found


def is_empty(value: Any) -> bool:
    """Whether a value says nothing."""
    if isinstance(value, str):
        if len(value) > 20:
            return not value.strip()
        return value.strip() in ("", "[]", "{}", "null", "None", *NO_INPUT)
    if isinstance(value, list):
        return all(map(is_empty, value))
    if isinstance(value, dict):
        return all(map(is_empty, value.values()))
    return not value


_GOOD = "good desirable chosen accepted positive up thumbs_up like liked upvote".split()
_BAD = "bad undesirable rejected negative down thumbs_down dislike disliked downvote".split()
_CLASSES = "yes no positive negative up down".split()
"""Of a column `label`, words that may as well name a class."""


def truth(value: Any, words: bool = False) -> bool | None:
    """A yes or no, however it is written; None where it is neither. `words`: `good`, `bad` and -1 are such too."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("true", "1", "1.0", "yes", "y") or (words and word in _GOOD):
            return True
        if word in ("false", "0", "0.0", "no", "n") or (words and word in _BAD):
            return False
    return False if words and value in (-1, "-1") else None


# ---- One object -------------------------------------------------------------------------------------------------


class Ledger:
    """The objects of one row, and what became of their columns."""

    def __init__(self, ignore: Collection[str] = ()) -> None:
        """ignore: canonical names of columns, wherever they stand in the row, that mean nothing to the user"""
        self.objects: list[Columns] = []
        self.ignore = ignore
        self.ignored: set[str] = set()


class Columns:
    """An object of a row: its values by canonical name, which it remembers as read."""

    def __init__(self, values: Values, ledger: Ledger, within: str = "", group: str = ""):
        self.values: Values = {}
        self.within, self.group, self.ledger = within, group, ledger
        self.read: set[str] = set()
        self.answers: list[str] = []
        """Columns that a verdict is of: nobody is asked to choose from them."""
        self._written: dict[str, str] = {}
        for written, value in values.items():
            name = canonical(written)
            if name in ledger.ignore:
                if value not in (None, "", [], {}):
                    ledger.ignored.add(cut(group + name, 60))
            elif name not in self.values or is_empty(self.values[name]):
                self.values[name], self._written[name] = value, written
            elif not is_empty(value) and value != self.values[name]:
                raise ValueError(
                    f"{within}{cut(written, 40)}: the row has a column {cut(self._written[name], 40)} too, and they "
                    "say different things; take one of them out"
                )
        ledger.objects.append(self)

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def at(self, name: str) -> str:
        """A column as an error names it: where it is, as the row spells it."""
        return self.within + cut(self._written.get(name, name), 40)

    def holds(self, name: str) -> bool:
        """Whether a column says something. "[]" or "None" is an input like any other, and elsewhere says nothing; 0 and
        false are an input, or a choice, like any other number."""
        value = self.values.get(name)
        if isinstance(value, int | float) and (name == "input" or _CHOICE.match(name)):
            return True
        if isinstance(value, str) and (name in _TEXTS or _CHOICE.match(name)):
            return bool(value.strip()) and not (name in GIVEN and value.strip() in NO_INPUT)
        return name in self.values and not is_empty(value)

    def there(self, name: str) -> bool:
        """Whether a column has a value, be it false, 0 or blanks."""
        return self.values.get(name) is not None and self.values[name] not in ("", [], {})

    def first(self, names: Iterable[str]) -> str | None:
        """The first of these columns that holds something, else the first that is there."""
        empty = None
        for name in names:
            if name in self.values:
                if self.holds(name):
                    return name
                empty = empty or name
        return empty

    def first_there(self, names: Sequence[str]) -> str | None:
        """As `first`, of columns in which 0 and false say something: verdicts, ranks, scores."""
        return next(filter(self.there, names), None) or self.first(names)

    def get(self, name: str) -> Any:
        self.read.add(name)
        return self.values.get(name)

    def take(self, name: str, kind: type[T]) -> T:
        """A value of the kind that the format says; a list or object that is empty is taken for a broken one."""
        value = self.get(name)
        if not isinstance(value, kind) or value in ([], {}):
            expected = "text" if kind is str else "a list" if kind is list else "an object"
            found = f"expected {expected}, found {shown(value)}" if name in self.values else "missing"
            raise ValueError(f"{self.at(name)}: {found}")
        return value

    def items(self, name: str, kind: type[T]) -> list[T]:
        """A list whose every item is of the kind."""
        found = self.take(name, list)
        for i, value in enumerate(found):
            if not isinstance(value, kind) or (kind is not str and not value):
                expected = "text" if kind is str else "a list" if kind is list else "an object"
                raise ValueError(f"{self.at(name)}.{i}: expected {expected}, found {shown(value)}")
        return found

    def objects(self, name: str) -> list[Columns]:
        """The objects of a list, as columns of their own."""
        return [self._inner(value, name, f".{i}", "[]") for i, value in enumerate(self.items(name, dict))]

    def object(self, name: str) -> Columns:
        return self._inner(self.take(name, dict), name)

    def _inner(self, values: Values, name: str, index: str = "", group: str = "") -> Columns:
        return Columns(values, self.ledger, f"{self.at(name)}{index}.", f"{self.group}{name}{group}.")

    def read_all(self) -> None:
        """Mark every column as read: of rows that Trueup wrote."""
        self.read |= self.values.keys()

    def unread(self) -> Iterator[tuple[str, Any]]:
        return ((name, value) for name, value in self.values.items() if name not in self.read and not is_empty(value))

    # ---- Known meanings

    def refuse_unsupported(self) -> None:
        """Raise for a column that Trueup cannot honour and that holds something."""
        for name, value in self.values.items():
            if is_unsupported(name) and name not in self.read and not is_empty(value):
                raise ValueError(
                    f"{self.at(name)}: holds {shown(value, 40)}, which Trueup cannot give to a model; take the row "
                    f"out, or {IGNORE} if the row means the same without it"
                )

    def refuse_unclear_weights(self, of_a_row: bool = False) -> None:
        """Raise for a yes or no, or of a message a number, whose name says that it may be of the loss."""
        kinds = bool if of_a_row else bool | int | float
        for name, value in self.values.items():
            if name not in self.read and isinstance(value, kinds) and is_unclear_weight(name):
                raise ValueError(
                    f"{self.at(name)}: {shown(value)} may say that this carries no loss; name the column `weight` and "
                    f"write 0 or 1, or {IGNORE}"
                )

    def carries_loss(self, of_a_row: bool = False) -> bool | None:
        """Whether what this object holds is to be trained on; None where it does not say.

        of_a_row: a number in `loss` is then a measured one, and says nothing of the kind
        """
        said: list[bool] = []
        for name in self.values:
            if name not in _LOSS or not self.there(name):
                continue
            if of_a_row and name == "loss" and not isinstance(self.values[name], bool):
                continue
            yes = truth(value := self.get(name))
            if yes is None:
                wanted = "expected 0 or 1, true or false (no other weight is supported)"
                raise ValueError(f"{self.at(name)}: {wanted}, found {shown(value)}")
            said.append(yes != (name in NOT_TRAINED))
        return all(said) if said else None


# ---- What is left -----------------------------------------------------------------------------------------------


def why_left_out(row: Columns, use: Use) -> str | None:
    """The reason for which a sound row is not to be used, from the columns that say so; None: it is."""
    if reason := why_taken_out(row):
        return reason
    if use != "prompts":
        if row.carries_loss(of_a_row=True) is False:
            return "weight 0 or train: false"
        row.refuse_unclear_weights(of_a_row=True)
    return why_bad(row) if use == "demonstrations" else None


def why_taken_out(row: Columns) -> str | None:
    """Why a row, or a turn, counts no more: somebody deleted or rejected it."""
    for name, value in row.values.items():
        known = flag(name)
        if known is None or known.kind != "out" or name in row.read:
            continue
        yes = truth(value) if name not in _SIDES_TOO or isinstance(value, bool) else None
        if yes is not None:
            row.read.add(name)
        if yes is known.when:
            return f"{name}: {str(yes).lower()}"
    for name in STATES:
        if isinstance(value := row.values.get(name), str):
            state = value.strip().lower()
            if any(state == out or state.startswith(f"{out}_") for out in OUT):
                row.read.add(name)
                return f"{name}: {cut(state, 40)}"
    return None


def why_bad(row: Columns) -> str | None:
    """Why the answer of a row is none to imitate."""
    for name, value in row.values.items():
        known = flag(name)
        if not (name in LABELS or (known and known.kind == "bad")) or name in row.read or value is None:
            continue
        bad = known.when if known and known.kind == "bad" else False
        is_class = name == "label" and isinstance(value, str) and value.strip().lower() in _CLASSES
        yes = None if is_class else truth(value, words=name in LABELS)
        if name == "label" and yes is not None and not isinstance(value, bool | str):
            raise ValueError(
                f"{row.at(name)}: {shown(value)} may say that the answer is good or bad, or name a class; write true "
                f"or false, or {IGNORE}"
            )
        if yes is not None:
            row.read.add(name)
            if yes is bad:
                return f"{name}: {str(yes).lower()}"
    return "answer that was cut (truncated, or finish_reason: length)" if _is_cut(row) else None


def _is_cut(row: Columns) -> bool:
    flags = [name for name in (*CUT, *WHOLE) if name not in row.read and truth(row.values.get(name)) is not None]
    row.read.update(flags)
    stopped = [str(row.values.get(name)).strip().lower() for name in STOPS]
    cut_off = any(truth(row.values[name]) is (name in CUT) for name in flags)
    return cut_off or not _AT_THE_LIMIT.isdisjoint(stopped)


def mark_against(name: str, value: Any) -> bool:
    """Whether a value under a name is a mark against what it stands with, whatever is to follow from it."""
    if known := flag(name):
        if name in _SIDES_TOO:
            return value is known.when
        yes = truth(value)
        says = isinstance(value, str) or (isinstance(value, int | float) and known.kind == "out")  # why, or since when
        return yes is known.when or (
            yes is None and says and known.when and known.kind != "bad" and not is_empty(value)
        )
    if not isinstance(value, str):
        return False
    word = re.sub(r"[\s\-]+", "_", value.strip().lower())
    return (name in SPLITS and word in _OTHER_SPLIT) or (name in (*JUDGED, *STATES) and word in _POOR)


def is_marked(turn: Columns) -> bool:
    """Whether an assistant turn has a mark against it; it is then read, and carries no loss."""
    marks = [name for name, value in turn.values.items() if name not in turn.read and mark_against(name, value)]
    turn.read.update(marks)
    return bool(marks)


def _refuse_mark(row: Columns, name: str, value: Any, use: Use) -> None:
    """Raise for a mark against a row. Of a prompt neither the split nor what its answer was is of matter."""
    known = flag(name)
    of_no_matter = use == "prompts" and (name in (*SPLITS, *JUDGED, *LABELS) or (known and known.kind == "bad"))
    if not of_no_matter and mark_against(name, value):
        raise ValueError(
            f"{row.at(name)}: holds {shown(value, 40)}, which may say that the row is not to be used; take such rows "
            f"out, or {IGNORE}"
        )


def settle(ledger: Ledger, said: list[str], use: Use) -> None:
    """Refuse what was not read and changes the meaning of the conversation `said`; count the rest as ignored."""
    for columns in ledger.objects:
        columns.refuse_unsupported()
        for name, value in columns.values.items():
            if name in columns.read or not (columns.there(name) and (value in (0, False) or not is_empty(value))):
                continue
            if "[]" not in columns.group:  # of a message, whose keys are settled where it is read
                _refuse_mark(columns, name, value, use)
                _refuse_other_text(columns, name, value, said, use)
                if use == "demonstrations":
                    refuse_reasoning(columns, name, value, said)
            ledger.ignored.add(cut(columns.group + name, 60))


def refuse_reasoning(row: Columns, name: str, value: Any, said: list[str]) -> None:
    """Raise for what was thought before an answer, and is not written in it."""
    if not is_reasoning(name) or isinstance(value, bool | int | float):
        return
    if not _stands_in(value, said):
        raise ValueError(
            f"{row.at(name)}: holds what was thought before the answer, which is not trained; write it into the answer "
            f"as the model is to say it, or {IGNORE}"
        )


_ASKED = {*CONVERSATIONS, *QUESTIONS, *GIVEN, *SYSTEM, *HISTORY, *CHOICES, *TEXTS} - {"user", "human"}
_IMITATED = {*ANSWERS, *CHOSEN}


@lru_cache(maxsize=10_000)
def is_related(name: str) -> bool:
    """Whether a name is like that of a prompt's part, and not of what kind or how long it is."""
    return bool(RELATED.search(name)) and not _ABOUT.search(name)


def _refuse_other_text(row: Columns, name: str, value: Any, said: list[str], use: Use) -> None:
    imitated = use == "demonstrations" and name in _IMITATED
    related = is_related(name)
    if row.read.isdisjoint(CONVERSATIONS):
        of_it = OF_A_QUESTION.search(name) or (use == "demonstrations" and name in OF_AN_ANSWER)
        related = related or bool(of_it and any(map(_is_prose, _texts(value))))
    if not (name in _ASKED or imitated or related or _CHOICE.match(name)) or isinstance(value, bool | int | float):
        return
    refuse_other_text(row, name, value, said)


def _is_prose(text: str) -> bool:
    """Whether a text is words, and no identifier, address or number."""
    text = text.strip()
    return bool(text) and (" " in text or not re.search(r"[\W\d_]", text))


def refuse_other_text(row: Columns, name: str, value: Any, said: list[str]) -> None:
    """Raise for a text that stands beside what is `said`, and not in it."""
    if not _stands_in(value, said):
        raise ValueError(
            f"{row.at(name)}: holds {shown(value, 40)}, which the other columns do not say; join it to the text that "
            f"it belongs to, or {IGNORE}"
        )


def _stands_in(value: Any, said: list[str]) -> bool:
    """Whether each text of a value is a part of the conversation, or the whole conversation a part of the value."""
    texts = [" ".join(text.split()) for text in _texts(value)]
    spoken = [" ".join(text.split()) for text in said]
    whole = " ".join(spoken)
    if all(_is_part(text, whole) for text in texts):
        return True
    # A template may stand between a question and what is given with it, which are paragraphs here.
    parts = [" ".join(part.split()) for text in said for part in text.split("\n\n")]
    return len(texts) == 1 and all(part in texts[0] for part in parts)


def _is_part(text: str, whole: str) -> bool:
    """Whether a text stands in another, and not within a word."""
    start = whole.find(text)
    while start >= 0:
        around = whole[max(0, start - 1) : start] + whole[start + len(text) : start + len(text) + 1]
        if not any(character.isascii() and character.isalnum() for character in around):
            return True
        start = whole.find(text, start + 1)
    return False


def _texts(value: Any) -> Iterator[str]:
    """The texts in a value: of messages what they say, not who says it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        spoken = [key for key in value if canonical(key) in ("content", "value", "text")]
        for key in spoken or value:
            yield from _texts(value[key])
