"""Singulars of nouns by the rules of Pattern, which the first CHAIR scorer calls.

Pattern is no longer to be had from the package index, and its behaviour decides CHAIR's digits: it
turns "bus" into "bu" and "ties" into "ty". The rules are Conway's, as in Bermi Ferrer's inflector
and in clips/pattern (BSD-3, see NOTICE), applied in their order; the code is ours.
"""

from __future__ import annotations

import re
from functools import lru_cache

__all__ = ["pattern_singular"]

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?i)(.)ae$", r"\1a"),
        (r"(?i)(.)itis$", r"\1itis"),
        (r"(?i)(.)eaux$", r"\1eau"),
        (r"(?i)(quiz)zes$", r"\1"),
        (r"(?i)(matr)ices$", r"\1ix"),
        (r"(?i)(ap|vert|ind)ices$", r"\1ex"),
        (r"(?i)^(ox)en", r"\1"),
        (r"(?i)(alias|status)es$", r"\1"),
        (r"(?i)([octop|vir])i$", r"\1us"),
        (r"(?i)(cris|ax|test)es$", r"\1is"),
        (r"(?i)(shoe)s$", r"\1"),
        (r"(?i)(o)es$", r"\1"),
        (r"(?i)(bus)es$", r"\1"),
        (r"(?i)([m|l])ice$", r"\1ouse"),
        (r"(?i)(x|ch|ss|sh)es$", r"\1"),
        (r"(?i)(m)ovies$", r"\1ovie"),
        (r"(?i)(.)ombies$", r"\1ombie"),
        (r"(?i)(s)eries$", r"\1eries"),
        (r"(?i)([^aeiouy]|qu)ies$", r"\1y"),
        (r"([aeo]l)ves$", r"\1f"),
        (r"([^d]ea)ves$", r"\1f"),
        (r"arves$", "arf"),
        (r"erves$", "erve"),
        (r"([nlw]i)ves$", r"\1fe"),
        (r"(?i)([lr])ves$", r"\1f"),
        (r"([aeo])ves$", r"\1ve"),
        (r"(?i)(sive)s$", r"\1"),
        (r"(?i)(tive)s$", r"\1"),
        (r"(?i)(hive)s$", r"\1"),
        (r"(?i)([^f])ves$", r"\1fe"),
        (r"(?i)(^analy)ses$", r"\1sis"),
        (r"(?i)(analy|ba|diagno|parenthe|progno|synop|the)ses$", r"\1sis"),
        (r"(?i)(.)opses$", r"\1opsis"),
        (r"(?i)(.)yses$", r"\1ysis"),
        (r"(?i)(h|d|r|o|n|b|cl|p)oses$", r"\1ose"),
        (r"(?i)(fruct|gluc|galact|lact|ket|malt|rib|sacchar|cellul)ose$", r"\1ose"),
        (r"(?i)(.)oses$", r"\1osis"),
        (r"(?i)([ti])a$", r"\1um"),
        (r"(?i)(n)ews$", r"\1ews"),
        (r"(?i)s$", ""),
    )
)
_UNCHANGED = tuple(
    (
        "bison bream breeches britches carp chassis christmas clippers cod contretemps corps "
        "debris diabetes djinn eland elk flounder gallows georgia graffiti headquarters "
        "herpes high-jinks homework innings jackanapes mackerel measles mews mumps news "
        "pincers pliers proceedings rabies salmon scissors series shears species swine swiss "
        "trout tuna whiting wildebeest advice bread butter cheese electricity equipment fruit "
        "furniture garbage gravel happiness information ketchup knowledge love luggage "
        "mathematics mayonnaise meat mustard news progress research rice sand software "
        "understanding water "
    ).split()
)
_IE = tuple(
    (
        "alergie auntie beanie birdie bogie bombie collie cookie cutie doggie eyrie freebie goonie "
        "groupie hankie hippie hoagie hottie indie junkie laddie laramie lingerie meanie newbie "
        "nightie oldie pixie quickie reverie rookie softie sortie stoolie sweetie techie toughie "
        "valkyrie veggie weenie yuppie zombie"
    ).split()
)
_IRREGULAR = {
    "atlantes": "atlas", "atlases": "atlas", "axes": "axe", "beeves": "beef",
    "brethren": "brother", "children": "child", "corpora": "corpus", "corpuses": "corpus",
    "ephemerides": "ephemeris", "feet": "foot", "ganglia": "ganglion", "geese": "goose",
    "genera": "genus", "genii": "genie", "graffiti": "graffito", "helves": "helve", "kine": "cow",
    "leaves": "leaf", "loaves": "loaf", "men": "man", "mongooses": "mongoose", "monies": "money",
    "moves": "move", "mythoi": "mythos", "numena": "numen", "occipita": "occiput",
    "octopodes": "octopus", "opera": "opus", "opuses": "opus", "our": "my", "oxen": "ox",
    "penes": "penis", "penises": "penis", "people": "person", "sexes": "sex",
    "soliloquies": "soliloquy", "teeth": "tooth", "testes": "testis", "trilbys": "trilby",
    "turves": "turf", "zoa": "zoon",
}  # fmt: skip
_PREPOSITIONS = frozenset(
    (
        "about above across after among around at athwart before behind below beneath beside "
        "besides between betwixt beyond but by during except for from in into near of off on onto "
        "out over since till to under until unto upon with"
    ).split()
)


@lru_cache(maxsize=65536)
def pattern_singular(word: str) -> str:
    """What Pattern's `singularize` gives for a noun, its mistakes included.

    Args:
        word: One token; CHAIR lower-cases it first.
    """
    head, hyphen, tail = word.partition("-")
    if hyphen and tail.partition("-")[0] in _PREPOSITIONS:
        return f"{pattern_singular(head)}-{tail}"
    if word.endswith("'"):
        return f"{pattern_singular(word[:-1])}'s"
    low = word.lower()
    # The other way round than one would think: the listed word ends in the token.
    if any(listed.endswith(low) for listed in _UNCHANGED):
        return word
    if any(low.endswith(f"{listed}s") for listed in _IE):
        return low
    for plural, singular in _IRREGULAR.items():
        if low.endswith(plural):
            return re.sub(f"(?i){plural}$", singular, word)
    for pattern, replacement in _RULES:
        if pattern.search(word):
            return pattern.sub(replacement, word)
    return word
