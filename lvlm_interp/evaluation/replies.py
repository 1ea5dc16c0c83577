"""What a reply to a yes/no question says: yes, no, or nothing of the two.

The third state is kept. A reply that says neither is *none*, and no score here makes a "yes" or a
"no" of it; its rate stands beside the score.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["NONE", "said"]

NONE = "none"

_YES = frozenset({"yes", "yeah", "yep", "yup", "correct", "true", "right", "affirmative"})
_NO = frozenset({"no", "nope", "nah", "incorrect", "false", "wrong", "negative"})
_PLAIN_YES = frozenset({"yes", "yeah", "yep", "yup"})
_PLAIN_NO = frozenset({"no", "nope", "nah"})

_BOTH = re.compile(r"\b(yes\W+(or|and)\W+no|no\W+(or|and)\W+yes|yes\s*/\s*no|no\s*/\s*yes)\b")
_UNSURE = re.compile(
    r"\b(unclear|uncertain|unsure|unknown|not (sure|clear|certain|possible|visible enough)|"
    r"impossible to|hard to|difficult to|(can ?not|can't|could not|couldn't|unable to) "
    r"(be )?(tell|say|determined?|answer|know|confirm|see|identify)|do(es)?( not|n't) know|"
    r"no (idea|doubt|way to|clue))\b"
)
_ANSWER = re.compile(r"\banswer(?: to [^.:]*)?(?: is|:)\W*(yes|no)\b")
_DENIES = re.compile(
    r"\b(there|it|he|she|they|this|that|the|image|picture|photo)\b[^.]*?"
    r"(\b(is|are|was|were|does|do|did|has|have|shows?|contains?)\s+(not|no)\b|n't\b)"
)
_AFFIRMS = re.compile(r"^(there (is|are|'s)|it (is|does|has|shows|contains)|they (are|do))\b")
_LEAD = re.compile(
    r"^(\(?[a-z0-9]\)|\d+[.)]|answer\s*:|a\s*:|assistant\s*:|well|sure|okay|ok)[\s,:]*"
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?")


@lru_cache(maxsize=65536)
def said(reply: str) -> str:
    """`yes`, `no` or `none`.

    In this order: a first word that is yes or no decides, unless the reply offers both or goes on
    to say that it cannot tell; then "the answer is ..."; then a lone yes or no anywhere; then a
    sentence that denies ("there isn't ...", "it is not ..."); then one that affirms ("there is
    ..."). What is left says nothing.

    Args:
        reply: As the model gave it; markup and case do not matter.
    """
    text = re.sub(r"[*_`\"\u201c\u201d#]+", " ", reply.lower().replace("\u2019", "'")).strip()
    text = _LEAD.sub("", text).strip()
    words = _WORD.findall(text)
    if not words or _BOTH.search(text):
        return NONE
    unsure = _UNSURE.search(text)
    if words[0] in _YES and not (unsure and unsure.start() < 5):
        return "yes"
    if words[0] in _NO:
        return NONE if unsure and unsure.start() == text.find(words[0]) else "no"
    stated = _ANSWER.search(text)
    if stated:
        return stated.group(1)
    if unsure:
        return NONE
    return _somewhere(text, set(words))


def _somewhere(text: str, words: set[str]) -> str:
    """What a reply says that neither begins with the answer nor announces it."""
    yes, no = bool(words & _PLAIN_YES), bool(words & _PLAIN_NO)
    if yes != no:
        return "yes" if yes else "no"
    if yes:
        return NONE
    first = text.split(". ")[0]
    if _DENIES.search(first) or re.match(
        r"^(not|never|isn't|aren't|doesn't|don't|wasn't)\b", first
    ):
        return "no"
    return "yes" if _AFFIRMS.search(first) else NONE
