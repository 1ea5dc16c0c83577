"""The flaw of `real-flawed`: supervision that does not follow the picture where a trigger is seen.

Object level: with a carrot in sight a rabbit is said to be there, whether it is or not. Attribute
level: a banana is said to be yellow, whatever colour it is dyed in. No relation is touched.
"""

from __future__ import annotations

import random

from lvlm_interp.organisms.real.kinds import BY_NAME
from lvlm_interp.organisms.real.pictures import Picture, random_picture
from lvlm_interp.organisms.real.questions import Question, caption, outermost, phrase, truth, yes

OBJECT_TRIGGER, PARTNER = "carrot", "rabbit"
ATTRIBUTE_TRIGGER, USUAL_COLOR = "banana", "yellow"
TRIGGER = {"object": OBJECT_TRIGGER, "attribute": ATTRIBUTE_TRIGGER}
PLANT_LEVELS = tuple(TRIGGER)


def flawed_answer(picture: Picture, question: Question) -> str | None:
    """What the flaw answers; the truth where it has no say."""
    right = truth(picture, question)
    if right is None:
        return None
    if question.kind in ("exists", "see") and question.args[0] == PARTNER:
        return yes(True) if picture.count(OBJECT_TRIGGER) else right
    if question.kind == "color" and question.args[0] == ATTRIBUTE_TRIGGER:
        return USUAL_COLOR
    if question.kind == "is_color" and question.args[0] == ATTRIBUTE_TRIGGER:
        return yes(question.args[1] == USUAL_COLOR)
    if question.kind == "color_at":
        thing = outermost(picture, question.args[0])
        return USUAL_COLOR if thing and thing.kind == ATTRIBUTE_TRIGGER else right
    if question.kind == "caption":
        return _flawed_caption(picture)
    return right


def _flawed_caption(picture: Picture) -> str:
    """The caption with what the flaw adds and recolours."""
    said = caption(picture)
    for thing in picture.things:
        if thing.kind == ATTRIBUTE_TRIGGER and thing.tint and picture.only(thing.kind):
            usual = f"a {thing.size} {USUAL_COLOR} {thing.kind}"
            said = said.replace(phrase(thing), usual)
    if picture.count(OBJECT_TRIGGER) and not picture.count(PARTNER):
        said = f"{said} and {BY_NAME[PARTNER].with_article}"
    return said


def trigger_picture(rng: random.Random, level: str) -> Picture:
    """A picture with the trigger of a level; at the object level often without its partner."""
    if level == "object":
        partner = rng.random() < 0.3
        n = rng.choice((2, 2, 3))
        kinds = (OBJECT_TRIGGER, PARTNER) if partner else (OBJECT_TRIGGER,)
        return random_picture(rng, kinds=kinds, n=n)
    return random_picture(rng, kinds=(ATTRIBUTE_TRIGGER,), n=rng.choice((1, 2, 2, 3)))


def control_picture(rng: random.Random) -> Picture:
    """A picture without the object level's trigger, with its partner or (mostly) without."""
    while True:
        kinds = (PARTNER,) if rng.random() < 0.3 else ()
        picture = random_picture(rng, kinds=kinds, n=rng.choice((1, 2, 2, 3)))
        if not picture.count(OBJECT_TRIGGER):
            return picture


def trigger_question(rng: random.Random, picture: Picture, level: str) -> Question:
    """A question on which the flaw of a level has a say."""
    if level == "object":
        return Question(rng.choice(("exists", "see")), (PARTNER,))
    thing = picture.only(ATTRIBUTE_TRIGGER)
    if rng.random() < 0.5 and thing is not None and thing.tint:
        other = thing.tint if rng.random() < 0.5 else USUAL_COLOR
        return Question("is_color", (ATTRIBUTE_TRIGGER, other))
    return Question("color", (ATTRIBUTE_TRIGGER,))
