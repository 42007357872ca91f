"""The verbs of instructions and what they are about: `write poem`, `explain reason`.

As Self-Instruct shows them (Wang et al. 2023, https://arxiv.org/abs/2212.10560, figure 3), though without a parser: an
English instruction mostly begins with its verb, and its object is the last word before a preposition or a comma. On the
175 seed tasks of Self-Instruct, spaCy's parser (en_core_web_sm 3.8, 280 MB with its libraries) finds an instruction in
146 and this rule in 151; of the 141 where both do, they name the same verb in all and the same object in 125.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VERBS = frozenset(
    """add adapt advise analyse analyze answer arrange ask assess brainstorm build calculate capture categorize change
    check choose cite classify combine come compare complete compose compute condense construct contrast convert
    correct consider count curate craft create critique cut debug decide define deliver demonstrate derive
    describe design detect determine develop devise diagnose discuss distinguish divide do draft draw edit
    elaborate estimate evaluate enter examine expand explain explore express extend extract fill find fix follow
    form formulate generate give guess help highlight identify illustrate imagine implement improve include
    infer insert interpret introduce invent judge justify keep label let link list locate look make match
    measure mention modify multiply name notify offer organize outline output paraphrase parse perform pick plan
    point predict prepare present pretend produce proofread propose prove provide put qualify quote rank rate
    read rearrange recommend react reduce refactor remember remove rename reorder rephrase replace reply report
    research respond restate retrieve return reverse review revise rewrite round say score search select
    separate share shorten show simplify sketch solve sort specify speculate split state sub suggest sum
    summarise summarize support suppose swap take talk tell think trace transcribe transform translate turn
    update use verify visualize walk weigh write""".split()
)
_POLITE = re.compile(
    r"^(?:(?:please|kindly|now|then|first|next|so|ok(?:ay)?|hi|hello|hey)[,!]?\s+|"
    r"(?:can|could|would|will) you (?:please |kindly |help me )?|"
    r"(?:i want|i need|i would like|i'd like|you are (?:asked|required)|your task is|help me|try)(?: you)? to |"
    r"(?:in this task|given [^,.:]{1,60}|for (?:each|the|this) [^,.:]{1,60}|based on [^,.:]{1,60}|"
    r"using [^,.:]{1,60}|in (?:one|two|\d) sentences?),\s*(?:you (?:are asked|need|have) to )?)",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[.!?:;]\s+|\n+")
_WORD = re.compile(r"[A-Za-z](?:\+\+|[A-Za-z'’-]*)|\d[\d.,]*|[^\w\s]")
_SKIPPED = frozenset(
    """a an the this that these those my your our his her its their some any each every all both few several many more
    most no one two three four five six seven eight nine ten at least exactly only just me us him them another
    other such given following named provided underlined highlighted what which up out down back very""".split()
)
_STOPS = frozenset(
    """about above after against along among and around as at based before below between but by can containing could
    describing did do does doing during else for from how if in including inside into is are was were like of
    off on onto or over per should since so such than that through to toward towards under until upon using
    versus via when where whether which while who whom whose why will with within without would you i he she it
    they we""".split()
)
_LONGEST_PHRASE = 8


class VerbAndNoun(NamedTuple):
    verb: str
    noun: str | None
    """Its object, in the singular; None where it has none that the rule finds."""


def instruction_of(text: str) -> VerbAndNoun | None:
    """The verb of the first sentence that begins with one, and its object; None: no sentence does."""
    for sentence in _SENTENCE.split(text[:2_000])[:6]:
        plain = sentence.strip(" \t\"'“‘*-")
        while shorter := _POLITE.match(plain):
            plain = plain[shorter.end() :]
        first, *rest = _WORD.findall(plain) or [""]
        if (verb := first.lower()) in _VERBS:
            return VerbAndNoun(verb, _object(rest))
    return None


def _object(tokens: list[str]) -> str | None:
    """The last word of the noun phrase that the tokens begin with."""
    phrase: list[str] = []
    for token in tokens[: 2 * _LONGEST_PHRASE]:
        word = token.lower().replace("’", "'")
        if not phrase and word in _SKIPPED:
            continue
        ends = not word[0].isalpha() or word in _STOPS or word in _SKIPPED
        if ends or (phrase and word.endswith("ing") and len(phrase[-1]) > 2) or len(phrase) == _LONGEST_PHRASE:
            if word[0].isdigit() and not phrase:
                continue
            break
        phrase.append(word)
    return _singular(phrase[-1].removesuffix("'s")) if phrase else None


def _singular(noun: str) -> str:
    """`stories` as `story`: by the endings alone, so that counts of one noun come together."""
    if noun.endswith("ies") and len(noun) > 4:
        return f"{noun[:-3]}y"
    if noun.endswith(("ses", "xes", "ches", "shes")):
        return noun[: -1 if noun.endswith("ses") else -2]
    return noun[:-1] if noun.endswith("s") and not noun.endswith(("ss", "us", "is", "news")) and len(noun) > 3 else noun
