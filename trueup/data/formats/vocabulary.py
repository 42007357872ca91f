"""What the name of a column, or of a message's key, is known to mean: the one place that says so.

Names are canonical: "Input", "chosen-response" and "systemPrompt" are `input`, `chosen_response` and `system_prompt`.
What becomes of a column by its name is said in `columns` and `settling`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from trueup.data.jsonl import excerpt
from trueup.data.tools import CALL_ROLES, RESULT_ROLES

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
ANNOTATORS = "annotator annotator_id judge worker labeler labeller rater worker_id labeler_id rater_id".split()
ANNOTATORS += "completed_by judge_hash judge_model labelling_model labeling_model".split()
"""Whose judgement it is, of the columns of a preference."""
ROW_IDS = "id row_id example_id sample_id uuid uid question_id qid post_id prompt_id message_tree_id".split()
"""What the file itself calls a row."""
OF_A_ROW = re.compile(r"(^|_)(at|date|time|timestamp|model|generator|seconds|latency|session(_id)?|index|idx)$")
"""Names that differ from answer to answer, and mean nothing to which is better."""
REASONS = "explanation justification rationale reason preference_statement preference_elaboration".split()
REASONS += "comment comments".split()
"""Why an answer is better, in words."""
CRITERIA = "helpfulness harmlessness honesty correctness accuracy factuality truthfulness safety coherence".split()
CRITERIA += "complexity verbosity instruction_following relevance clarity fluency coverage completeness".split()
CRITERIA += "conciseness creativity style depth engagement naturalness grammar".split()
"""By what answers may be judged besides the overall choice: the field's names."""
_BY = {"safer": "safety", "more_helpful": "helpfulness", "more_honest": "honesty", "more_correct": "correctness"}
_BY |= {"helpful": "helpfulness", "honest": "honesty", "harmless": "harmlessness", "truthful": "truthfulness"}

LABELS = "label kto_tag kto_label is_chosen is_good is_desirable desirable is_preferred is_accepted accepted".split()
LABELS += (
    "thumbs_up thumbs liked upvoted good positive is_positive feedback approved is_correct correct is_valid".split()
)
"""Whether an answer is one to imitate: data for KTO and its like."""
WEIGHTS = "weight loss_weight sample_weight train trained trainable training is_trained do_train loss loss_mask".split()
WEIGHTS += "has_loss compute_loss train_on use_for_training".split()
"""Whether an assistant turn, or a whole row, carries loss: 0 and false say no."""
NOT_TRAINED = "masked ignore ignored exclude excluded no_loss skip".split()
"""The same the other way round."""
LOSS = {*WEIGHTS, *NOT_TRAINED}
LAST_TURN_ALONE = "mask_history last_turn_only only_last_turn train_on_last_turn_only train_last_turn_only".split()
"""A yes of a row says that only its last answer carries loss."""
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
SIDES_TOO = ("rejected", "selected")
"""Names that are flags only if they hold true or false: anything else is an answer, or says which one is better."""
_NOT = ("not", "dont", "never", "non")
_BEFORE_A_FLAG = "is was are be been has to should must do marked mark flag as row sample example item".split()
_BEHIND_A_FLAG = "flag row sample example item entry it this from for training train at on by reason".split()
CUT = "truncated is_truncated cut_off is_cut_off incomplete is_incomplete".split()
WHOLE = "finished is_finished complete is_complete".split()
"""A no says that the answer was cut."""
STOPS = "finish_reason stop_reason done_reason".split()
AT_THE_LIMIT = {"length", "max_length", "max_tokens"}
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
TOOLS = ("tools", "functions", "available_tools")
"""What a demonstration's assistant may call."""
CALLS = ("tool_calls", "function_call", "function_calls", "tool_call_id", "call_id")
"""Keys of a message: what it calls, or whose result it is."""
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
FOREIGN_ROLES = (*RESULT_ROLES, *CALL_ROLES, "environment")

PROMPT_PARTS = {*CONVERSATIONS, *QUESTIONS, *GIVEN, *SYSTEM, *HISTORY, *CHOICES, *TEXTS} - {"user", "human"}
TARGETS = {*ANSWERS, *CHOSEN}

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
def criterion(name: str) -> str | None:
    """The criterion that a word names: `safer` and `safety` are one."""
    name = _BY.get(name, name)
    return name if name in CRITERIA else None


@lru_cache(maxsize=10_000)
def is_unsupported(name: str) -> bool:
    """Whether a column holds what Trueup cannot give to a model."""
    return bool(UNSUPPORTED.search(name)) and name not in HARMLESS


@lru_cache(maxsize=10_000)
def is_reasoning(name: str) -> bool:
    """Whether a column holds what was thought before an answer, and not what kind or how long it was."""
    return bool(REASONING.search(name)) and not _ABOUT.search(name)


def is_switch(value: Any) -> bool:
    """Whether a text says that something was on or off, or how much of it there was, and not what."""
    return isinstance(value, str) and value.strip().lower() in ("on", "off", "none", "low", "medium", "high")


def masks_the_user(name: str, value: Any) -> bool:
    """Whether a column says that the user's turns carry no loss, which they never do."""
    return name == "mask" and isinstance(value, str) and value.strip().lower() in ("user", "human")


def is_rejected(name: str) -> bool:
    """Whether a column tells of the answer that was not preferred."""
    return not {"rejected", "dispreferred"}.isdisjoint(name.split("_")) or "non_preferred" in name


@lru_cache(maxsize=10_000)
def is_related(name: str) -> bool:
    """Whether a name is like that of a prompt's part, and not of what kind or how long it is."""
    return bool(RELATED.search(name)) and not _ABOUT.search(name)


def is_choice(name: str) -> bool:
    """Whether a column holds one of several answers to choose from."""
    return bool(_CHOICE.match(name))


def is_text(name: str) -> bool:
    """Whether the text of a column is asked or imitated as it stands, whatever it looks like."""
    return name in _TEXTS or is_choice(name)


@lru_cache(maxsize=10_000)
def is_unclear_weight(name: str) -> bool:
    return bool(UNCLEAR_WEIGHT.search(name)) and name not in (*LOSS, *LAST_TURN_ALONE) and not name.startswith("in_")


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
    words, negation = name.split("_"), False
    while len(words) > 1 and (words[0] in _BEFORE_A_FLAG or words[0] in _NOT):
        negation ^= words.pop(0) in _NOT
    while len(words) > 1 and "_".join(words) not in _FLAGS and words[-1] in _BEHIND_A_FLAG:
        words.pop()
    meaning = _FLAGS.get("_".join(words))
    return meaning._replace(when=not meaning.when) if meaning and negation else meaning


def says_nothing(value: Any) -> bool:
    """As `is_empty`, but false and 0 say something wherever they stand: they may be a flag."""
    if isinstance(value, list | dict):
        return all(map(says_nothing, value.values() if isinstance(value, dict) else value))
    return is_empty(value) and not isinstance(value, bool | int | float)


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
CLASSES = "yes no positive negative up down".split()
"""Words that may name a class where the column is called `label`."""


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


def mark_against(name: str, value: Any) -> bool:
    """Whether a value under a name is a mark against what it stands with, whatever is to follow from it."""
    if meaning := flag(name):
        if name in SIDES_TOO:
            return value is meaning.when
        yes = truth(value)
        # A text says why, and a number since when.
        says = isinstance(value, str) or (isinstance(value, int | float) and meaning.kind == "out")
        return yes is meaning.when or (
            yes is None and says and meaning.when and meaning.kind != "bad" and not is_empty(value)
        )
    if not isinstance(value, str):
        return False
    word = re.sub(r"[\s\-]+", "_", value.strip().lower())
    return (name in SPLITS and word in _OTHER_SPLIT) or (name in (*JUDGED, *STATES) and word in _POOR)


def annotator_name(value: Any) -> str:
    """An annotator's name as text, however a file writes it."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"expected the name of an annotator, found {excerpt(value)}")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
