"""What kind of task a prompt is: by the data's own category where it names one, and else by English cue words.

The rules are few enough to read, and a report shows the cues that decided, so that anybody can see why a row counts as
what it does. `python benchmarks/kinds.py` prints what they are worth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Mapping
from typing import NamedTuple

from trueup.data.jsonl import cut

KINDS = (
    "question_answering",
    "summarisation",
    "creative_writing",
    "code",
    "analysis",
    "translation",
    "mathematics",
    "conversation",
)
OTHER = "other"
"""No cue says what a prompt is; also of most that are not English."""

_NAMES = {
    "question_answering": "qa question_answer closed_qa open_qa general_qa trivia knowledge facts stem humanities",
    "summarisation": "summarization summary summarise summarize tldr",
    "creative_writing": "creative writing creativity story poetry poem roleplay role_play brainstorming",
    "code": "coding programming program python software debugging",
    "analysis": "reasoning classification extraction information_extraction logic comparison critique analytical",
    "translation": "translate mt machine_translation",
    "mathematics": "math maths arithmetic algebra geometry gsm8k calculation",
    "conversation": "chat dialogue dialog chitchat small_talk advice casual multi_turn",
}
_KIND_OF = {name: kind for kind in KINDS for name in (kind, *_NAMES[kind].split())}


def named_kind(category: str | None) -> str | None:
    """The kind that a category of the data names; None: none, or one that is not ours."""
    return _KIND_OF.get(re.sub(r"[\s\-/]+", "_", category.strip().casefold())) if category else None


def is_named(kind: str, names: Container[str | None]) -> bool:
    """Whether one of the names is that of a kind, or of the kind of ours that it is a name for: `math` is named by
    `mathematics`."""
    return kind in names or named_kind(kind) in names


def kind_of(category: str | None, question: str) -> str:
    """The kind of a task: its category as the data name it, and without one what the cue words of its question tell."""
    return category or told_kind(question).kind


# ---- Cues -------------------------------------------------------------------------------------------------------

_LANGUAGES = (
    "English|French|German|Spanish|Italian|Portuguese|Dutch|Latin|Greek|Russian|Polish|Chinese|Mandarin|Japanese|"
    "Korean|Arabic|Hebrew|Turkish|Hindi|Swedish|Norwegian|Danish|Finnish|Czech|Hungarian|Romanian|Ukrainian|Vietnamese"
)
_NUMBER = (
    r"(?:\d+(?:[.,:/]+\d+)*+|half|twice|zero|one|two|three|four|five|six|seven|eight|nine|ten|twelve|dozen|hundred)"
)
_CUES: Mapping[str, tuple[tuple[int, str], ...]] = {
    "code": (
        (4, r"```"),
        (4, r"\b(?:python|javascript|typescript|java|c\+\+|rust|golang|php|sql|html|css|bash|shell|linux|regex|numpy|"
            r"git|json)\b"),
        (3, r"\b\w+\.\w+\(|\b[a-z_]+\([^)]*\)|\b(?:def|elif|const|printf|println)\b[ (]|[a-z] ==? [a-z]\b"),
        (3, r"\b(?:\w+Error|NullPointer\w*|segfault|stack trace|traceback|debug|compile[rs]?|refactor)\b"),
        (3, r"\b(?:for|while) loop|\b(?:else|if) (?:branch|statement|block)\b"),
        (3, r"\b(?:source code|program(?:ming)?|algorithm|recursion|array|dict|tuple|boolean|API|regexp?|linked list|"
            r"binary tree|database|unit test|source file|command line|list comprehension|operator)s?\b"),
        (2, r"\b(?:code|script|function|variable|command|list|string)s?\b"),
    ),
    "translation": (
        (6, r"\btranslat\w+"),
        (4, rf"\b(?:in|into|to|from|a) (?:{_LANGUAGES})\b(?! class)"),
        (3, rf"\b(?:{_LANGUAGES}) (?:for|expression|idiom|word|phrase|sentence|saying|proverb|motto|noun|verb|exercise|"
            r"speakers?)\b"),
        (3, rf"\b(?:how|what|which) .{{0,80}}\b(?:{_LANGUAGES})s?\b.{{0,80}} (?:say|mean|written|borrow)"),
        (3, rf"\b(?:{_LANGUAGES}) ['‘\"“]|\bliteral(?:ly)?\b"),
        (2, rf"\b(?:{_LANGUAGES})s?\b"),
        (1, r"['‘\"“][^'’\"”]*[àâäçèéêëîïñóôöùûüß]"),
    ),
    "summarisation": (
        (7, r"\b(?:summari[sz]e|summary|tl;?dr|condense|sum (?:this|it|that)? ?up|in a nutshell|short version)\b"),
        (5, r"\b(?:key points?|gist|essence|boil \w+ down|shorten|shrink|reduce this|capture the)\b"),
        (6, r"\b(?:one|two|three|at most \w+|a single|1|2|3)[- ](?:short )?sentences?\b[^\n]{0,60}\n\s*\S.{120}"),
        (6, r".{160}\b(?:one|two|three|a single|1|2|3) sentences?\b|\b(?:one|two) sentences?[^.]{0,60}: .{120}"),
        (5, r"\bwhat (?:do|does|did|is) (?:this|these|the) [^?\n]{3,40}\?[^\n]{0,50}\n\s*\S.{120}"),
        (2, r"\b(?:article|passage|report|notice|letter|announcement|message) (?:below|above)\b|"
            r"\bfollowing (?:article|passage|report|text|paragraph)\b"),
    ),
    "creative_writing": (
        (6, r"\b(?:poem|haiku|limerick|lyrics|sonnet|slogan|tagline|fairy tale|fable about|legend|made-up|fiction\w*|"
            r"imaginary|rhym\w+|poetic|poetry|memoir|toast for|riddle)s?\b"),
        (5, r"\b(?:write|compose|draft|create|craft|invent|pen|tell|make up|give|want|need|put)\b.{0,40}\b(?:story|"
            r"tale|song|dialogue|joke|novel|scene|monologue|character|ode|verse|blog post|speech|headline|diary|plot|"
            r"script for|opening|proverb|one line|caption|spooky|funny|magical)\b"),
        (4, r"^(?:please )?(?:pretend|imagine|picture|invent|act as|take me|embody|embrace the role|make up|caption|"
            r"advertise|pen|show (?:me )?two|let a|describe (?:a|an|my|the (?:smell|sound|taste|feeling)))\b"),
        (4, r"\bpoint of view of\b|\b(?:what|how) (?:might|would) (?:a|an|the) (?!good)\w+ [^?]{0,150}\b(?:say|"
            r"introduce|feel|think)\b"),
        (3, r"\b(?:write|compose|draft|craft|pen|create)\b(?: me)? (?:a|an|some|the|two|three|one)\b"),
        (2, r"\b(?:story|creative\w*|imagin\w+|spooky|characters?|dragon|knight|magic\w*|haunted)\b"),
    ),
    "mathematics": (
        (4, r"\b(?:solve|calculate|compute|simplify|factor|differentiate|integrate|work out|convert|round|multiply|"
            rf"divide) .{{0,40}}(?:{_NUMBER}\b|[=^])"),
        (4, r"\d\s*[-+*/×÷^=]\s*\d|\b[a-z]\s*[-+*/^]\s*\d+|\b\d[a-z]\s*[-+=]|\d+ (?:times|plus|minus|to the power)"),
        (4, r"\b(?:equation|probability|chance of|fraction|triangle|rectangle|circle|circumference|hexagon|polygon|"
            r"perimeter|volume of|area of|square root|prime number|integer|divisible|remainder|derivative|integral|"
            r"matrix|median|mean (?:score|of)|geometry|algebra|arithmetic|theorem|polynomial|inequality|exponent|"
            r"decimal|mathematic\w*|multiple|dice|die|average)s?\b"),
        (3, r"\bpercent of\b|\b(?:sequence|pattern) \d|\ba number (?:by|to)\b|\bnearest (?:ten|hund|who)"),
        (3, rf"\b{_NUMBER}\b[^?]{{0,150}}\bhow (?:many|much|long|far|old|fast|likely)\b[^?]{{0,150}}\?"),
        (3, rf"\b{_NUMBER}\b[^?]{{0,40}}\b{_NUMBER}\b[^?]{{0,80}}\bwhat (?:is|are)\b[^?]{{0,150}}\?"),
        (3, rf"\bhow (?:many|much|long|far|old|fast|likely)\b[^?]{{0,150}}\b{_NUMBER}\b[^?]{{0,150}}\?"),
        (1, r"\d+ ?(?:percent|dollars|euros|pounds|cm|km|m|kg|hours|minutes|%|\$)|\$\d"),
    ),
    "analysis": (
        (5, r"\b(?:compare|contrast|anal[yi]\w*|assess|evaluate|classify|categori[sz]e|critique|pros and cons|judge|"
            r"diagnose|interpret|advantages?|disadvantages?|strengths and weaknesses|trade-?offs?)\b"),
        (4, r"\b(?:positive|negative|pleased)\b.{0,20}\b(?:negative|neutral|mixed|positive|annoyed)\b|\bsentiment\b|"
            r"\b(?:tone|mood)\b"),
        (4, r"\b(?:argument|fallacy|flaw|fault|weakness|assumption|conclu\w+|evidence|premise|logical\w*|sound:|"
            r"infer\w*|reasoning|ambiguous|persuasive|correlation|prove|trend|likeliest)\b"),
        (4, r"\bwhat (?:separates|distinguishes|stands out|changed|caused|causes|(?:does|do) (?:this|that|it|the "
            r"\w+) (?:suggest|imply|show|say about))\b"),
        (4, r"\b(?:how|in what way) (?:do|does|did|are) .{1,80} (?:differ|compare)\b|\bdifferences? between\b|"
            r"\bagainst\b"),
        (4, r"\bwhich (?:\w+ ){1,4}(?:better|quicker|faster|safer|cheaper|stronger|worse|more|belong|likely|odd)\b|"
            r"\bbetter value\b|\bor\b.{0,60}\bwhich is\b"),
        (3, r"\b(?:identify|extract|reasons?|effects?|impact|main reason|review:|explain why|why (?:might|did|do))\b"),
        (2, r"\b(?:claim|cause|most likely|reviews?)\b"),
    ),
    "conversation": (
        (5, r"^(?:hi|hello|hey|good (?:morning|night|evening|afternoon)|thanks|thank you|how are you)\b"),
        (4, r"\b(?:I feel|I'm (?:feeling|losing|learning|worried|nervous|so|off|tired)|I am (?:feeling|worried|so)|"
            r"makes me feel|to feel|I can't believe|can you believe|do you think)\b"),
        (3, r"\b(?:my|a) (?:best |new |old )?(?:friend|roommate|boss|son|daughter|mother|father|mum|mom|dad|sister|"
            r"brother|colleague|coworker|neighbou?r|partner|wife|husband|dog|cat|teacher|flatmate|parents|kids|street)s?\b"),
        (3, r"\bshould I\b|\bwhat (?:should|do) I (?:do|say)\b|\bany (?:advice|ideas|tips)\b|\bhow do I politely\b"),
        (3, r"\A(?:I|I'm|I've|My|Our|We|It|Tomorrow|Everyone|Someone|Nobody)\b[^?\n]{0,120}[.!]\s*\Z"),
        (2, r"\b(?:gift|birthday|party|weekend|dinner|first date|hobby|holiday|conversation|free \w+day|"
            r"tea or coffee)\b"),
    ),
    "question_answering": (
        (1, r"^(?:please )?(?:explain|name|list|define|tell me|describe)\b|"
            r"\b(?:who|whom|whose|when|where|why|which|what|how)\b(?=[^?]{0,150}\?)|\?\s*\Z"),
    ),
}  # fmt: skip
_COMPILED = {
    kind: [(weight, re.compile(cue, re.IGNORECASE | re.MULTILINE)) for weight, cue in cues]
    for kind, cues in _CUES.items()
}
_READ = 4_000
"""Characters of a prompt that are searched; a task is told at its beginning or at its end."""


_CUE = 30
"""Characters of a cue that are shown; some hold much of a sentence."""


class Told(NamedTuple):
    """The kind of a text, and the words that decided."""

    kind: str
    cues: tuple[str, ...]


def told_kind(text: str) -> Told:
    """The kind whose cues weigh most; of equal ones that which is named first, where a plain question is last."""
    searched = text if len(text) <= _READ else f"{text[: _READ // 2]}\n{text[-_READ // 2 :]}"
    told, most = Told(OTHER, ()), 0
    for kind, cues in _COMPILED.items():
        found = [(weight, match[0]) for weight, cue in cues if (match := cue.search(searched))]
        weight = sum(weight for weight, _ in found)
        if weight > most:
            most, told = weight, Told(kind, tuple(cut(" ".join(text.split()).lower(), _CUE) for _, text in found))
    return told


def most_frequent(cues: Counter[str], number: int = 6) -> dict[str, int]:
    """The cues that decided most often."""
    return dict(sorted(cues.items(), key=lambda one: (-one[1], one[0]))[:number])
