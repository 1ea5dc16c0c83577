"""A unified benchmark from what is known of images: three levels, four tasks, balanced truths.

- **poll**: one yes/no statement; truths alternate, so that each level has as many of either;
- **pair**: two yes/no statements about one image that differ in a word, one true and one false;
- **open**: a colour, a direction or a number is asked for;
- **describe**: the image is to be described.

Objects that are not there are chosen three ways, named in the label `negative`: `popular` (in most
images), `co-occurring` (with what is there, elsewhere) and `random`. The gate: an attribute is
asked only of a thing that is there, once, and a relation only of two such things.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lvlm_interp.data.benchmarks.graphs import SceneGraph
from lvlm_interp.data.examples import Annotated, Example
from lvlm_interp.errors import DataError
from lvlm_interp.evaluation import severity
from lvlm_interp.evaluation.wording import ENGLISH, PROPERTIES, SIZES, Wording, kind_of

__all__ = ["NEGATIVES", "Knowledge", "build"]

NEGATIVES = ("popular", "co-occurring", "random")
_POPULAR = 10
_FAR = 2.0
"""How many times farther apart one way than the other boxes must be for a relation."""


@dataclass(frozen=True)
class Knowledge:
    """What a set of scene graphs says beyond each image.

    Attributes:
        names: Names of things, the most frequent first.
        together: How many images hold both of two names.
        kinds: Supercategory of a name.
    """

    names: tuple[str, ...]
    together: Mapping[str, Counter[str]]
    kinds: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, graphs: Sequence[SceneGraph]) -> Knowledge:
        """Counted over images."""
        images, together, kinds = Counter(), defaultdict(Counter), {}
        for graph in graphs:
            names = sorted({thing.name for thing in graph.objects})
            images.update(names)
            kinds |= graph.kinds
            for name in names:
                together[name].update(other for other in names if other != name)
        ordered = sorted(images, key=lambda name: (-images[name], name))
        return cls(tuple(ordered), together, kinds)


def build(
    graphs: Sequence[SceneGraph],
    *,
    wording: Wording = ENGLISH,
    seed: int = 0,
    flaw: Callable[[SceneGraph, str, tuple[str, ...]], bool] | None = None,
) -> list[Example]:
    """Questions about each image, with truths and the delta of each wrong answer.

    Args:
        graphs: What the images hold.
        wording: How it is asked.
        seed: Of all choices.
        flaw: Says of a yes/no question whether a known flaw answers it wrongly; becomes the label
            `condition` (`flaw` or `other`).

    Returns:
        Examples; labels `task`, `delta` (of the wrong answer to a poll), `negative`, `pair`, `kind`
        and what an open answer's delta needs. `objects` and `relations` are those of the graph.

    Raises:
        DataError: Two images have one id, or no image holds anything.
    """
    twice = [name for name, n in Counter(graph.id for graph in graphs).items() if n > 1]
    if twice:
        raise DataError(f"{len(twice)} image ids occur more than once, the first {twice[0]!r}.")
    known = Knowledge.of(graphs)
    if not known.names:
        raise DataError("no image holds an object: nothing can be asked.")
    found: list[Example] = []
    turns: Counter[str] = Counter()
    for graph in graphs:
        maker = _Maker(graph, known, wording, random.Random(f"{seed}/{graph.id}"), flaw, turns)
        found += maker.examples()
    return found


class _Maker:
    """Makes the questions of one image."""

    def __init__(
        self,
        graph: SceneGraph,
        known: Knowledge,
        wording: Wording,
        rng: random.Random,
        flaw: Callable[[SceneGraph, str, tuple[str, ...]], bool] | None,
        turns: Counter[str],
    ) -> None:
        self.graph, self.known, self.wording, self.rng = graph, known, wording, rng
        self.flaw, self.turns = flaw, turns
        counts = Counter(thing.name for thing in graph.objects)
        self.present = sorted(counts)
        self.single = {
            thing.name: (at, thing)
            for at, thing in enumerate(graph.objects)
            if counts[thing.name] == 1
        }
        self.asked: Mapping[str, Any] = graph.labels.get("ask", {})

    def examples(self) -> list[Example]:
        """All questions of the image."""
        found = [*self._objects(), *self._attributes(), *self._relations(), self._describe()]
        return found

    # -- one question ------------------------------------------------------------------------------

    def _poll(
        self,
        level: str,
        task: str,
        parts: tuple[str, ...],
        truth: str,
        delta: float,
        **labels: Any,
    ) -> Example:
        ask = {"object": self.wording.exists, "attribute": self.wording.has}
        text = ask.get(level, self.wording.relates)(*parts)
        if self.flaw is not None:
            labels["condition"] = "flaw" if self.flaw(self.graph, level, parts) else "other"
        name = "-".join(part.replace(" ", "_") for part in parts)
        return self._example(f"{level}/{task}/{name}", text, truth, level, task, delta, labels)

    def _example(
        self,
        name: str,
        text: str,
        answer: str | None,
        level: str | None,
        task: str,
        delta: float | None,
        labels: Mapping[str, Any],
    ) -> Example:
        foil = {"yes": "no", "no": "yes"}.get(answer or "")
        return Example(
            id=f"{self.graph.id}/{name}",
            image=self.graph.image,
            prompt=text,
            answer=answer,
            foil=foil,
            level=level,
            group=self.graph.id,
            labels={"task": task, "delta": delta, **labels},
            objects=self.graph.objects,
            relations=self.graph.relations,
        )

    def _turn(self, what: str) -> bool:
        """True and false in turns, over all images."""
        self.turns[what] += 1
        return self.turns[what] % 2 == 1

    # -- objects -----------------------------------------------------------------------------------

    def _objects(self) -> Iterator[Example]:
        forced = self.asked.get("object")
        absent = {forced: "asked"} if forced and forced not in self.present else {}
        self.turns["object"] += 1
        for step in range(len(NEGATIVES)):
            way = NEGATIVES[(self.turns["object"] + step) % len(NEGATIVES)]
            name = self._absent(way, set(absent))
            if name is not None and len(absent) < len(self.present):
                absent[name] = way
        there = self.rng.sample(self.present, min(len(absent), len(self.present)))
        if forced in self.present and forced not in there and there:
            there[0] = forced
        for name, way in absent.items():
            delta = self._invented(name)
            yield self._poll("object", "poll", (name,), "no", delta, negative=way)
        for name in there:
            yield self._poll("object", "poll", (name,), "yes", severity.DENIAL)
        taken = set(absent)
        yield from self._object_pair(taken, there)

    def _object_pair(self, taken: set[str], there: Sequence[str]) -> Iterator[Example]:
        absent = self._absent("random", taken)
        rest = [name for name in self.present if name not in there] or list(self.present)
        if absent is None or not rest:
            return
        present, pair = self.rng.choice(rest), f"{self.graph.id}/object"
        yield self._poll("object", "pair", (present,), "yes", severity.DENIAL, pair=pair)
        yield self._poll("object", "pair", (absent,), "no", self._invented(absent), pair=pair)

    def _absent(self, way: str, taken: set[str]) -> str | None:
        out = {*self.present, *taken}
        pool = [name for name in self.known.names if name not in out]
        if way == "popular":
            pool = pool[:_POPULAR]
        elif way == "co-occurring":
            beside: Counter[str] = Counter()
            for name in self.present:
                beside.update(self.known.together.get(name, {}))
            pool = [name for name, _ in beside.most_common() if name not in out][:_POPULAR]
        return self.rng.choice(pool) if pool else None

    def _invented(self, name: str) -> float:
        kind = self.known.kinds.get(name)
        like = kind is not None and any(self.known.kinds.get(o) == kind for o in self.present)
        return severity.invented_object(like)

    # -- attributes --------------------------------------------------------------------------------

    def _attributes(self) -> Iterator[Example]:
        subject = self._subject("attribute", [n for n in sorted(self.single) if self._values(n)])
        if subject is None:
            return
        kind, value = self.rng.choice(self._values(subject))
        wrong = self._other_value(subject, kind)
        if wrong is not None:
            delta = self._delta_of(kind, wrong, value)
            if self._turn("attribute/pair"):
                pair = f"{self.graph.id}/attribute"
                for said, truth, cost in ((value, "yes", severity.DENIAL), (wrong, "no", delta)):
                    yield self._poll(
                        "attribute", "pair", (subject, said), truth, cost, pair=pair, kind=kind
                    )
            elif self._turn("attribute/poll"):
                yield self._poll(
                    "attribute", "poll", (subject, value), "yes", severity.DENIAL, kind=kind
                )
            else:
                yield self._poll("attribute", "poll", (subject, wrong), "no", delta, kind=kind)
        if kind == "colour":
            yield self._example(
                f"attribute/open/{subject}", self.wording.which_colour(subject), value, "attribute",
                "open", None, {"kind": "colour", "subject": subject},
            )  # fmt: skip

    def _subject(self, level: str, able: Sequence[Any]) -> Any:
        forced = self.asked.get(level)
        forced = tuple(forced) if isinstance(forced, list) else forced
        if forced is not None and forced in able:
            return forced
        return self.rng.choice(able) if able else None

    def _values(self, name: str) -> list[tuple[str, str]]:
        """Kind and word of what is known of a thing, where the kind is known and has one word."""
        thing: Annotated = self.single[name][1]
        kinds = [(kind_of(word, self.wording.palette), word) for word in thing.attributes]
        counts = Counter(kind for kind, _ in kinds)
        return [(kind, word) for kind, word in kinds if kind is not None and counts[kind] == 1]

    def _other_value(self, name: str, kind: str) -> str | None:
        """A wrong word of a kind: half of the time another thing's, as seeing it is not all."""
        words = list(self.wording.palette) if kind == "colour" else list(PROPERTIES[kind])
        own = set(self.single[name][1].attributes)
        wrong = [word for word in words if word not in own]
        around = {word for thing in self.graph.objects for word in thing.attributes}
        beside = [word for word in wrong if word in around]
        pool = beside if beside and self.rng.random() < 0.5 else wrong
        return self.rng.choice(pool) if pool else None

    def _delta_of(self, kind: str, said: str, true: str) -> float:
        if kind == "colour":
            return severity.colour(said, true, self.wording.palette)
        if kind == "size":
            return severity.size(SIZES[said], SIZES[true], list(SIZES.values()))
        return severity.property_of(said, true)

    # -- relations ---------------------------------------------------------------------------------

    def _relations(self) -> Iterator[Example]:
        able = sorted(self._related())
        forced = self.asked.get("relation")
        if forced is not None:
            able = [each for each in able if {each[0], each[2]} == set(forced)] or able
        if not able:
            return
        first, what, second = self.rng.choice(able)
        wrong, delta = self._false_relation(first, what, second)
        if wrong is not None:
            if self._turn("relation/pair"):
                pair = f"{self.graph.id}/relation"
                yield self._poll(
                    "relation", "pair", (first, what, second), "yes", severity.DENIAL, pair=pair
                )
                yield self._poll("relation", "pair", wrong, "no", delta, pair=pair)
            elif self._turn("relation/poll"):
                yield self._poll("relation", "poll", (first, what, second), "yes", severity.DENIAL)
            else:
                yield self._poll("relation", "poll", wrong, "no", delta)
        if what in severity.DIRECTIONS and self.wording.where is not None:
            yield self._example(
                f"relation/open/{first}-{second}", self.wording.where(first, second), what,
                "relation", "open", None, {"kind": "spatial", "subject": first},
            )  # fmt: skip

    def _related(self) -> set[tuple[str, str, str]]:
        """Relations between things that are there once; from boxes where none are given."""
        at = {index: name for name, (index, _) in self.single.items()}
        found = {(at[a], what, at[b]) for a, what, b in self.graph.relations if a in at and b in at}
        found = {each for each in found if each[0] != each[2]}
        if found or self.graph.relations or self.graph.labels.get("complete"):
            return found
        names = sorted(self.single)
        pairs = ((a, b) for a in names for b in names if a != b)
        seen = ((a, self._lies(a, b), b) for a, b in pairs)
        return {(a, what, b) for a, what, b in seen if what is not None}

    def _lies(self, first: str, second: str) -> str | None:
        one, two = self.single[first][1].box, self.single[second][1].box
        if one is None or two is None:
            return None
        dx = (one[0] + one[2] - two[0] - two[2]) / 2
        dy = (one[1] + one[3] - two[1] - two[3]) / 2
        apart_x = one[2] <= two[0] or two[2] <= one[0]
        apart_y = one[3] <= two[1] or two[3] <= one[1]
        if apart_x and abs(dx) > _FAR * abs(dy):
            return "left" if dx < 0 else "right"
        if apart_y and abs(dy) > _FAR * abs(dx):
            return "above" if dy < 0 else "below"
        return None

    def _false_relation(
        self, first: str, what: str, second: str
    ) -> tuple[tuple[str, str, str] | None, float]:
        if what in severity.DIRECTIONS:
            others = [each for each in severity.DIRECTIONS if each != what]
            back = self.rng.random() < 0.5
            wrong = severity.OPPOSITE[what] if back else self.rng.choice(others)
            return (first, wrong, second), severity.spatial(wrong, what)
        both = {(a, b) for a, said, b in self._related() if said == what}
        if (second, first) in both:
            return None, 0.0
        return (second, what, first), severity.relation(swapped=True)

    # -- descriptions ------------------------------------------------------------------------------

    def _describe(self) -> Example:
        return self._example("describe", self.wording.describe, None, None, "describe", None, {})
