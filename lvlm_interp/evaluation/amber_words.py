"""Nouns of an AMBER description, and which truths they hit, by the reference's order of matching.

The nouns that count are those of AMBER's closed vocabulary (`relation.json`: words and their
associates), in the case they stand in. Lemmas are WordNet 3.0's, as a finite table over that
vocabulary (`words/amber_forms.txt`). The reference asks NLTK's tagger what is a noun; here a word
of the vocabulary is one unless what stands before it says otherwise ("is building", "to drink").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from lvlm_interp.evaluation.tokens import word_tokens

__all__ = ["Hits", "amber_nouns", "match"]

Similar = Callable[[str, str], bool]

_BEFORE_VERBS = frozenset(
    "to i you we they he she who can could will would may might must should not n't".split()
)
_BE = frozenset("is are was were be been being am".split())
_CLOSED_VERBS = frozenset({"leave", "leaves", "can", "hot", "watch", "watches"})


@cache
def _lemmas() -> dict[str, str]:
    text = (resources.files("lvlm_interp.evaluation") / "words" / "amber_forms.txt").read_text()
    return dict(line.split() for line in text.splitlines() if line)


def amber_nouns(reply: str, vocabulary: frozenset[str]) -> list[str]:
    """Lemmas of the reply's nouns that are in the vocabulary, in order, repeats kept."""
    tokens = word_tokens(reply)
    found = []
    for at, token in enumerate(tokens):
        lemma = _lemmas().get(token, token)
        before = tokens[at - 1].lower() if at else ""
        if lemma in vocabulary and _is_noun(token, before):
            found.append(lemma)
    return found


def _is_noun(token: str, before: str) -> bool:
    if before in _BEFORE_VERBS or (token == "can" and before not in ("a", "the", "tin", "trash")):
        return False
    if token == "hot":
        return False
    return not (before in _BE and (token.endswith("ing") or token in _CLOSED_VERBS))


@dataclass(frozen=True)
class Hits:
    """What the nouns of one reply hit.

    Attributes:
        nouns: Nouns that count.
        unsafe: Those that nothing allows.
        covered: Truths that were hit.
        truths: Truths there are.
        imagined: Usual hallucinations that were hit.
        usual: Usual hallucinations there are.
    """

    nouns: int
    unsafe: int
    covered: int
    truths: int
    imagined: int
    usual: int


def match(
    nouns: Sequence[str],
    truth: Sequence[str],
    hallu: Sequence[str],
    association: Mapping[str, Sequence[str]],
    safe: frozenset[str],
    similar: Similar,
) -> Hits:
    """The reference's matching of nouns.

    Associates of all truths stand before the truths themselves, and the first that fits is hit: so
    "tree" hits a forest and never the tree. A noun that is a usual hallucination still goes on to
    the comparison by likeness, where a like truth saves it.

    Args:
        nouns: From `amber_nouns`.
        truth: What is there.
        hallu: What models usually imagine there.
        association: `relation.json`.
        safe: Words that never count against a reply.
        similar: Whether two words are alike enough.
    """
    there, imagined = _Slots(truth, association), _Slots(hallu, association)
    unsafe = 0
    for noun in nouns:
        if noun in safe:
            continue
        if there.hit_first(lambda word, n=noun: word == n):
            continue
        imagined.hit_first(lambda word, n=noun: word == n)
        imagined.hit_first(lambda word, n=noun: similar(n, word))
        if not there.hit_first(lambda word, n=noun: similar(n, word)):
            unsafe += 1
    return Hits(len(nouns), unsafe, sum(there.hit), len(truth), sum(imagined.hit), len(hallu))


class _Slots:
    """Words, associates first, each with the slot that it fills."""

    def __init__(self, words: Sequence[str], association: Mapping[str, Sequence[str]]) -> None:
        associates = [
            (other, slot) for slot, word in enumerate(words) for other in association.get(word, ())
        ]
        self.words = [*associates, *((word, slot) for slot, word in enumerate(words))]
        self.hit = [False] * len(words)

    def hit_first(self, fits: Callable[[str], bool]) -> bool:
        """Fill the slot of the first word that fits; False where none does."""
        for word, slot in self.words:
            if fits(word):
                self.hit[slot] = True
                return True
        return False
