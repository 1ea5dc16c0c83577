"""CHAIR: classes that a caption names and the image does not hold (Rohrbach et al. 2018).

CHAIRi = hallucinated mentions / mentions, where a repeat counts again (the paper says objects, the
code counts mentions); CHAIRs = captions with one / captions; recall (OPERA's) = classes named /
classes there, pooled over images. What is there: the classes with an instance, and those that the
five reference captions name.

Longer captions hallucinate more, so that most published gains are shorter captions. The controls
therefore hold the same captions cut after so many words: scores compare at equal recall or length.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lvlm_interp.evaluation.chair_words import (
    CLASSES,
    Mention,
    mentions_by_lemma,
    mentions_by_pattern,
    own_mentions,
)
from lvlm_interp.evaluation.pairing import Paired
from lvlm_interp.evaluation.rules import Outcome, Rule, Settings
from lvlm_interp.evaluation.tally import Formula, Share, estimates, over
from lvlm_interp.stats import Estimate

__all__ = ["CUTS", "RULES", "chair_scores", "objects_there", "truncated"]

CUTS = (10, 20, 40, 60, 80)
"""Words after which the captions of the truncation curve end."""

Reader = Callable[[str], list[Mention]]

_FORMULAS: dict[str, Formula] = {
    "chair_s": Share("with", "captions"),
    "chair_i": lambda c: over(c["hallucinated"], c["mentions"]),
    "recall": lambda c: over(c["named"], c["there"]),
}


def objects_there(paired: Paired, reader: Reader) -> list[set[str]]:
    """Classes of each image: instances, and what its reference captions name."""
    return [
        set(example.labels.get("objects", ()))
        | {
            mention.name
            for caption in example.labels.get("captions", ())
            for mention in reader(caption)
        }
        for example in paired.examples
    ]


def chair_scores(
    named: Sequence[Sequence[str]],
    there: Sequence[set[str]],
    groups: Sequence[str],
    settings: Settings,
) -> dict[str, Estimate]:
    """CHAIRs, CHAIRi and recall from the classes that captions name, repeats included.

    Args:
        named: Classes of each caption's mentions.
        there: Classes of each caption's image.
        groups: Image of each caption.
        settings: Of the bootstrap.
    """
    hallucinated = [
        sum(name not in truth for name in names) for names, truth in zip(named, there, strict=True)
    ]
    columns = {
        "captions": np.ones(len(named)),
        "with": [float(n > 0) for n in hallucinated],
        "hallucinated": hallucinated,
        "mentions": [len(names) for names in named],
        "named": [len(set(names) & truth) for names, truth in zip(named, there, strict=True)],
        "there": [len(truth) for truth in there],
    }
    return estimates(
        columns, groups, _FORMULAS, bounds=lambda name: (0.0, 1.0),
        n_resamples=settings.n_resamples, seed=settings.seed,
    )  # fmt: skip


def truncated(
    replies: Sequence[str],
    there: Sequence[set[str]],
    groups: Sequence[str],
    reader: Reader,
    cuts: Sequence[int] = CUTS,
) -> dict[str, dict[str, float]]:
    """The scores of the same captions cut after so many words: the truncation curve."""
    bare = Settings(n_resamples=0)
    longest = max((len(reply.split()) for reply in replies), default=0)
    curve = {}
    for cut in cuts:
        if cut >= longest:
            break
        named = [
            [mention.name for mention in reader(" ".join(reply.split()[:cut]))] for reply in replies
        ]
        scores = chair_scores(named, there, groups, bare)
        curve[f"first {cut} words"] = {name: each.estimate for name, each in scores.items()}
    return curve


def _rule(reader: Reader, truth_reader: Reader) -> Callable[[Paired, Settings], Outcome]:
    def score(paired: Paired, settings: Settings) -> Outcome:
        there = objects_there(paired, truth_reader)
        mentions = [reader(reply) for reply in paired.replies]
        named = [[mention.name for mention in each] for each in mentions]
        bare = Settings(n_resamples=0)
        constants = {
            "says nothing": [[] for _ in named],
            "names every class": [list(CLASSES) for _ in named],
            "names a person": [["person"] for _ in named],
        }
        controls = {
            name: {
                key: each.estimate
                for key, each in chair_scores(says, there, paired.groups, bare).items()
            }
            for name, says in constants.items()
        }
        controls |= truncated(paired.replies, there, paired.groups, reader)
        return Outcome(
            scores=chair_scores(named, there, paired.groups, settings),
            read=[sorted(set(names)) for names in named],
            unparsed=sum(not reply.strip() for reply in paired.replies),
            controls=controls,
            notes=_notes(paired, mentions),
            extra={"words_per_caption": float(np.mean([len(r.split()) for r in paired.replies]))},
        )

    return score


def _notes(paired: Paired, mentions: Sequence[Sequence[Mention]]) -> list[str]:
    notes = [f"{len(paired.examples)} images; CHAIR has no list of images, so compare on one list"]
    guessed = [any(mention.guessed for mention in each) for each in mentions]
    if any(guessed):
        words = sorted({m.word for each in mentions for m in each if m.guessed})
        notes.append(
            f"in {sum(guessed)} captions the part of speech of a word decides; it was read as a "
            f"verb, where the reference asks NLTK's tagger: {', '.join(words)}"
        )
    return notes


RULES = (
    Rule(
        "chair-lemma",
        "chair",
        "OPERA's chair.py of 2023: WordNet lemmas",
        _rule(mentions_by_lemma, mentions_by_lemma),
    ),
    Rule(
        "chair-pattern",
        "chair",
        "the authors' chair.py of 2018: Pattern's singulars",
        _rule(mentions_by_pattern, mentions_by_pattern),
    ),
    Rule(
        "chair-objects",
        "chair",
        "ours: each class once, denials and colours left out, the list's errors mended",
        _rule(own_mentions, own_mentions),
        own=True,
    ),
)
