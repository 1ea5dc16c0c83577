"""A second reading of the grammar, from words alone, that shares no code with the first."""

import re

_PLACES = "topleft top topright left center right bottomleft bottom bottomright".split()


def answer_in_words(scene, text):
    """Return the answer to `text`, from the objects' fields and the words of the question."""
    things = [(o.shape, o.color, _PLACES[o.row * 3 + o.col], o.row, o.col) for o in scene.objects]

    def one(word):
        found = [thing for thing in things if word in thing[:3]]
        assert len(found) == 1, (word, things)
        return found[0]

    if text == "describe the image .":
        parts = [f"a {c} {s} at {p}" for s, c, p, *_ in sorted(things, key=lambda t: t[3:])]
        return " and ".join(parts) + " ."
    if found := re.fullmatch(r"is there a (\w+) \?", text):
        return "yes" if any(found[1] == thing[0] for thing in things) else "no"
    if found := re.fullmatch(r"what color is the (?:shape at )?(\w+) \?", text):
        return one(found[1])[1]
    if found := re.fullmatch(r"what shape is (?:at (\w+)|the (\w+) shape) \?", text):
        return one(found[1] or found[2])[0]
    if found := re.fullmatch(r"what is at (\w+) \?", text):
        here = [f"{c} {s}" for s, c, p, *_ in things if p == found[1]]
        return here[0] if here else "nothing"
    if found := re.fullmatch(r"where is the (\w+) \?", text):
        return one(found[1])[2]
    if found := re.fullmatch(r"where is the (\w+) (?:shape )?of the (\w+)(?: shape)? \?", text):
        return _relation(one(found[1]), one(found[2]))
    words = "(left|right|above|below) (?:of )?the"
    if found := re.fullmatch(rf"is the (\w+) (?:shape )?{words} (\w+)(?: shape)? \?", text):
        return "yes" if _relation(one(found[1]), one(found[3])) == found[2] else "no"
    found = re.fullmatch(r"is the (\w+) (\w+) \?", text)
    assert found, text
    return "yes" if one(found[1])[1] == found[2] else "no"


def _relation(first, second):
    (*_, row, col), (*_, other_row, other_col) = first, second
    assert (row == other_row) != (col == other_col)
    if row == other_row:
        return "left" if col < other_col else "right"
    return "above" if row < other_row else "below"
