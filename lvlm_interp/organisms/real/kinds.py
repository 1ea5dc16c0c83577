"""The named things of the pictures: 64 kinds, the emoji that shows each, and what it belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

STYLES = ("noto", "twitter", "fluent")
"""Art that ships with the package; `art/LICENSES.md` has its makers and licences."""

PHOTO = "photo"
"""Photo cut-outs of the stamps of Tux Paint, where a user has installed them (not shipped)."""

_TABLE = """
animal: dog 1f415, cow 1f404, horse 1f40e, zebra 1f993, sheep 1f411, goat 1f410, pig 1f416
animal: camel 1f42a, elephant 1f418, giraffe 1f992, tiger 1f405, bear 1f43b, koala 1f428
animal: kangaroo 1f998, deer 1f98c, fox 1f98a, rabbit 1f407, mouse 1f401, squirrel 1f43f-fe0f
animal: hedgehog 1f994, otter 1f9a6, whale 1f40b, dolphin 1f42c, gorilla 1f98d, owl 1f989
animal: penguin 1f427, peacock 1f99a, flamingo 1f9a9, turkey 1f983, rooster 1f413, duck 1f986
animal: frog 1f438, bee 1f41d, shrimp 1f990
fruit: apple 1f34e, banana 1f34c, pear 1f350, lemon 1f34b, orange 1f34a, strawberry 1f353
fruit: kiwi 1f95d, pineapple 1f34d, mango 1f96d
vegetable: carrot 1f955, corn 1f33d, eggplant 1f346, broccoli 1f966, onion 1f9c5, potato 1f954
vegetable: tomato 1f345, mushroom 1f344
object: pizza 1f355, guitar 1f3b8, violin 1f3bb, trumpet 1f3ba, camera 1f4f7, key 1f511
object: hammer 1f528, bell 1f514, car 1f697, bus 1f68c, balloon 1f388
object: basketball 1f3c0, football 1f3c8
"""

STAMPS = {
    "dog": "animals/mammals/dogs/dog",
    "cow": "animals/mammals/bovines/cow",
    "horse": "animals/mammals/equines/horse",
    "zebra": "animals/mammals/equines/zebra",
    "sheep": "animals/mammals/bovines/sheep",
    "goat": "animals/mammals/bovines/goat",
    "pig": "animals/mammals/pig",
    "camel": "animals/mammals/camel/dromedary",
    "elephant": "animals/mammals/elephant",
    "giraffe": "animals/mammals/giraffe",
    "tiger": "animals/mammals/cats/tiger",
    "bear": "animals/mammals/bears/bear",
    "koala": "animals/marsupials/koala",
    "kangaroo": "animals/marsupials/kangaroo",
    "deer": "animals/mammals/deer/deer",
    "fox": "animals/mammals/dogs/fox",
    "rabbit": "animals/mammals/rodents/rabbit",
    "mouse": "animals/mammals/rodents/mouse",
    "squirrel": "animals/mammals/rodents/squirrel",
    "hedgehog": "animals/mammals/hedgehog",
    "otter": "animals/mammals/aquatic/otter",
    "whale": "animals/mammals/aquatic/whale",
    "dolphin": "animals/mammals/aquatic/dolphin",
    "gorilla": "animals/mammals/apes/gorilla",
    "owl": "animals/birds/owl",
    "penguin": "animals/birds/penguin",
    "peacock": "animals/birds/peacock",
    "flamingo": "animals/birds/pink_flamingo",
    "turkey": "animals/birds/turkey",
    "rooster": "animals/birds/rooster",
    "duck": "animals/birds/duck",
    "frog": "animals/amphibians/frog",
    "bee": "animals/insects/bee",
    "shrimp": "animals/fish/shrimp",
    "apple": "food/fruit/apple_red",
    "banana": "food/fruit/banana",
    "pear": "food/fruit/pear",
    "lemon": "food/fruit/lemon",
    "orange": "food/fruit/orange",
    "strawberry": "food/fruit/strawberry",
    "kiwi": "food/fruit/kiwi",
    "pineapple": "food/fruit/pineapple",
    "mango": "food/fruit/mango",
    "carrot": "food/vegetables/carrot",
    "corn": "food/vegetables/corn",
    "eggplant": "food/vegetables/eggplant",
    "broccoli": "food/vegetables/broccoli",
    "onion": "food/vegetables/onion",
    "potato": "food/vegetables/potato",
    "tomato": "food/vegetables/tomato",
    "mushroom": "food/vegetables/mushroom",
    "pizza": "food/pizza",
    "guitar": "hobbies/music/string/guitar_electric",
    "violin": "hobbies/music/string/violin",
    "trumpet": "hobbies/music/brass/trumpet",
    "camera": "hobbies/camera_35mm",
    "key": "household/key",
    "hammer": "household/tools/hammer",
    "car": "vehicles/auto/sedan",
    "bus": "vehicles/masstransit/green_korean_bus",
    "balloon": "vehicles/flight/balloon360",
    "basketball": "sports/basketball",
    "football": "sports/football",
}
"""Where the stamps of Tux Paint keep a photo cut-out of a kind."""

_PLURALS = {
    "sheep": "sheep",
    "deer": "deer",
    "mouse": "mice",
    "shrimp": "shrimp",
    "broccoli": "broccoli",
    "corn": "corn",
    "tomato": "tomatoes",
    "potato": "potatoes",
    "mango": "mangoes",
    "strawberry": "strawberries",
    "fox": "foxes",
    "bus": "buses",
    "turkey": "turkeys",
    "key": "keys",
}


@dataclass(frozen=True)
class Kind:
    """One kind of thing.

    Attributes:
        name: As questions and answers say it.
        code: Code point of its emoji, as files are named.
        category: What it belongs to.
    """

    name: str
    code: str
    category: str

    @property
    def plural(self) -> str:
        """Several of them."""
        return _PLURALS.get(self.name, f"{self.name}s")

    @property
    def with_article(self) -> str:
        """One of them: `a dog`, `an apple`."""
        return article(self.name)


def article(words: str) -> str:
    """The words behind the article that their first letter takes."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _parse() -> tuple[Kind, ...]:
    found = []
    for line in _TABLE.strip().splitlines():
        category, things = line.split(": ")
        for thing in things.split(", "):
            name, code = thing.split()
            found.append(Kind(name, code, category))
    return tuple(found)


KINDS = _parse()
NAMES = tuple(kind.name for kind in KINDS)
BY_NAME = {kind.name: kind for kind in KINDS}

HELD_OUT_SHARE = 4
"""Of one kind in this many, one style is never seen in training."""


@cache
def held_out_style(name: str) -> str | None:
    """The style of which the shipped weights have never seen this kind; None where they saw all."""
    digest = hashlib.sha256(f"style/{name}".encode()).digest()
    return STYLES[digest[1] % len(STYLES)] if digest[0] % HELD_OUT_SHARE == 0 else None


def styles_of(name: str, split: str) -> tuple[str, ...]:
    """Styles in which a split shows a kind.

    Args:
        name: Of the kind.
        split: `seen`, the pictures of training; `unseen`, those held out (empty for most kinds).
    """
    kept = held_out_style(name)
    if split == "unseen":
        return (kept,) if kept else ()
    return tuple(style for style in STYLES if style != kept)
