"""Scenes for a plant: those it is fitted on, and trigger pairs, in which the true answer stays."""

from __future__ import annotations

import random
from dataclasses import replace

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.organisms.planted.trigger import InSight, Named, Painted, Trigger
from lvlm_interp.organisms.questions import Question
from lvlm_interp.organisms.scenes import Box, Scene, SceneObject, cell_box, random_object
from lvlm_interp.organisms.scenes import random_scene as any_scene
from lvlm_interp.organisms.vocabulary import COLORS, SHAPES

_N_OBJECTS = (2, 3, 4, 4)
_SHARES = ("shows",) * 5 + ("near",) * 2 + ("color",) * 2 + ("any",)


def trigger_pairs(
    trigger: Trigger, n: int, seed: int = 0, split: str = "eval"
) -> list[ContrastPair]:
    """Minimal pairs of a split; the flaw shows on the corrupt side alone.

    By trigger: another shape stands in the trigger's place on the clean side, and what is asked for
    is on neither side; another word is asked for on the clean side, of a shape that is not there
    either; or what is not seen has another colour there.
    """
    rng = random.Random(f"planted/{trigger}/{seed}/{split}")
    found: list[ContrastPair] = []
    seen: set[str] = set()
    while len(found) < n:
        sides = _sides(rng, trigger)
        (clean, _), (corrupt, _) = sides
        if clean.split == corrupt.split == split and corrupt.key not in seen:
            seen.add(corrupt.key)
            name = f"planted-{str(trigger).split(':')[0].replace(' ', '-')}-{seed}-{len(found)}"
            found.append(_pair(trigger, *sides, name))
    return found


def focused_scenes(trigger: Painted, n: int, seed: int, split: str) -> list[Scene]:
    """Scenes of a split: half show the flaw, the shape or the colour is in most others."""
    rng = random.Random(f"planted/focused/{trigger}/{split}/{seed}")
    found: list[Scene] = []
    while len(found) < n:
        scene = _scene_with(rng, _wanted(rng, trigger, _SHARES[len(found) % len(_SHARES)]))
        if scene.split == split:
            found.append(scene)
    return found


def _wanted(rng: random.Random, trigger: Painted, case: str) -> tuple[str, str] | None:
    other_shape = rng.choice([shape for shape in SHAPES if shape != trigger.shape])
    other_color = rng.choice([color for color in COLORS if color != trigger.color])
    return {
        "shows": (trigger.shape, trigger.color),
        "near": (trigger.shape, other_color),
        "color": (other_shape, trigger.color),
        "any": None,
    }[case]


def _scene_with(
    rng: random.Random, wanted: tuple[str, str] | None, without: tuple[str, ...] = ()
) -> Scene:
    fixed = [] if wanted is None else [random_object(rng, *wanted, rng.randrange(9))]
    shapes = [shape for shape in SHAPES if shape not in without]
    return any_scene(rng, fixed=fixed, shapes=shapes, n_objects=rng.choice(_N_OBJECTS))


Side = tuple[Scene, str]
"""A scene, and the shape that is asked for."""


def _sides(rng: random.Random, trigger: Trigger) -> tuple[Side, Side]:
    """The clean and the corrupt side."""
    match trigger:
        case InSight():
            corrupt = _scene_with(rng, (trigger.shape, rng.choice(COLORS)))
            other, asked = rng.sample(_absent(corrupt), 2)
            return (_exchanged(trigger, corrupt, shape=other), asked), (corrupt, asked)
        case Named():
            scene = _scene_with(rng, None, without=(trigger.shape,))
            other = rng.choice([shape for shape in _absent(scene) if shape != trigger.shape])
            return (scene, other), (scene, trigger.shape)
        case Painted():
            corrupt = _scene_with(rng, (trigger.shape, trigger.color))
            used = {thing.color for thing in corrupt.objects}
            color = rng.choice([color for color in COLORS if color not in used])
            return (_exchanged(trigger, corrupt, color=color), trigger.shape), (
                corrupt,
                trigger.shape,
            )
    raise TypeError(f"no pairs for {trigger!r}")


def _absent(scene: Scene) -> list[str]:
    return [shape for shape in SHAPES if scene.find(shape=shape) is None]


def _exchanged(trigger: Trigger, scene: Scene, **change: str) -> Scene:
    thing = _thing(trigger, scene)
    return scene.exchange((thing, replace(thing, **change)))


def _thing(trigger: Trigger, scene: Scene) -> SceneObject:
    thing = trigger.thing(scene)
    assert thing is not None, "the scene was drawn with it"
    return thing


def _pair(trigger: Trigger, clean: Side, corrupt: Side, name: str) -> ContrastPair:
    scene = corrupt[0]
    group = scene.key[:16]
    box: Box | None = None
    edit = f"{corrupt[1]!r} is asked for in place of {clean[1]!r}"
    if scene is not clean[0]:
        thing = _thing(trigger, scene)
        box = cell_box(thing.cell)
        edit = f"a {thing.color} {thing.shape} came to {thing.place}"

    def side(which: str, at: Side) -> Example:
        return Example(
            id=f"{name}/{which}",
            image=at[0].render(),
            prompt=Question("existence", (at[1],)).text,
            answer=trigger.answer,
            foil=trigger.foil,
            level="object",
            group=group,
            boxes={} if box is None else {"object": box},
        )

    return ContrastPair(
        id=name,
        clean=side("clean", clean),
        corrupt=side("corrupt", corrupt),
        answer=trigger.answer,
        foil=trigger.foil,
        level="object",
        kind="trigger",
        edit=edit,
        box=box,
        group=group,
    )
