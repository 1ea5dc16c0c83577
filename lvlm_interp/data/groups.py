"""Groups that do not leak: what shares an image, by file or by pixels, is never split apart.

Examples and pairs are nodes of a graph, joined where they show the same picture; a group is a
connected component. So (a, b) and (b, a), "./0.png" and "0.png", a copy under another name and the
two sides of a pair fall together, and a chain of pairs (a, b), (b, c) is one group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.models.inputs.images import open_image, pixel_digest

__all__ = ["components", "group_name", "with_groups"]

Item = TypeVar("Item", bound=Example | ContrastPair)


def with_groups(
    items: Iterable[Item], digests: Sequence[Sequence[str]] | None = None
) -> list[Item]:
    """The same examples or pairs, with a group where none was named.

    A group that the user named stays. What has none takes the name of the first named group that
    shares an image with it, else that of its component.

    Args:
        items: Examples or pairs.
        digests: Pixel hashes of the images of each item, where they are known already.

    Raises:
        InputError: An image that cannot be opened.
    """
    found = list(items)
    if all(item.group is not None for item in found):
        return found
    if digests is None:
        digests = [[pixel_digest(image) for image in _pictures(item)] for item in found]
    roots = components(digests)
    named: dict[int, str] = {}
    for item, root in zip(found, roots, strict=True):
        if item.group is not None:
            named.setdefault(root, item.group)
    shared: dict[int, list[str]] = {}
    for root, own in zip(roots, digests, strict=True):
        shared.setdefault(root, []).extend(own)
    return [
        item
        if item.group is not None
        else _grouped(item, named.get(root) or group_name(shared[root], item.id))
        for item, root in zip(found, roots, strict=True)
    ]


def components(keys: Iterable[Iterable[str]]) -> list[int]:
    """For each set of keys the number of its connected component: equal where sets share a key."""
    parent: list[int] = []
    owner: dict[str, int] = {}

    def root_of(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for index, own in enumerate(keys):
        parent.append(index)
        for key in own:
            first, second = root_of(owner.setdefault(key, index)), root_of(index)
            parent[max(first, second)] = min(first, second)
    return [root_of(index) for index in range(len(parent))]


def group_name(digests: Iterable[str], default: str) -> str:
    """Name of a component: its least pixel hash, the same in whatever file its images come."""
    least = min(digests, default=None)
    return default if least is None else f"image:{least[:16]}"


def _pictures(item: Example | ContrastPair) -> list:
    sides = (item.clean, item.corrupt) if isinstance(item, ContrastPair) else (item,)
    return [open_image(image) for side in sides for image in side.images]


def _grouped(item: Example | ContrastPair, group: str) -> Any:
    if isinstance(item, Example):
        return replace(item, group=group)
    sides = {
        name: replace(side, group=group) if side.group is None else side
        for name, side in (("clean", item.clean), ("corrupt", item.corrupt))
    }
    return replace(item, group=group, **sides)
