"""The role `caption`: an example's description, read in a run of its own.

A description is no part of the prompt, and behind the image its tokens would have seen the image.
So it is the user's words of a run without an image, and the role is what `question` is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lvlm_interp.activations.gather import Missing
from lvlm_interp.activations.roles import CAPTION, Role, roles_of
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import InputError
from lvlm_interp.sites import Site

__all__ = ["Taken", "captioned", "split_roles", "with_captions"]

Taken = tuple[
    dict[Site, np.ndarray], dict[tuple[Site, str], np.ndarray], dict[tuple[str, str], np.ndarray]
]
"""Averaged positions by site, every token by site and role, and tokens of each example."""


def split_roles(roles: Sequence[Role]) -> tuple[tuple[Role, ...], tuple[Role, ...]]:
    """Roles of the prompt, and those of the description as roles of its own run."""
    prompted = tuple(role for role in roles if role.base != CAPTION)
    described = (Role(role.name, "question", role.pooled) for role in roles if role.base == CAPTION)
    return prompted, tuple(described)


def captioned(examples: Sequence[Example], missing: Missing) -> tuple[list[Example], np.ndarray]:
    """A text-only example of each description, and the index of the example it belongs to.

    Raises:
        InputError: An example has none and must.
    """
    texts = [example.labels.get(CAPTION) for example in examples]
    there = [index for index, text in enumerate(texts) if isinstance(text, str) and text.strip()]
    if len(there) < len(texts) and missing == "raise":
        lacking = next(e.id for i, e in enumerate(examples) if i not in there)
        raise InputError(
            f"Example {lacking!r} has no description, so no position 'caption': give it the label "
            "'caption' (in `labels` of its row), or leave the position out."
        )
    found = [
        Example(id=examples[index].id, image=None, prompt=str(texts[index])) for index in there
    ]
    return found, np.array(there, dtype=np.int64)


def with_captions(
    prompted: Taken,
    run: Callable[[list[Example], Sequence[Site], Sequence[Role]], Taken],
    examples: Sequence[Example],
    sites: Sequence[Site],
    roles: Sequence[Role],
    missing: Missing,
) -> Taken:
    """What the prompt's run gave, with the description's run added.

    Args:
        prompted: Of the roles of the prompt.
        run: Runs text-only examples and gathers sites and roles.
        examples: The batch.
        sites: All sites, those of other towers too.
        roles: All roles, as they were asked for.
        missing: What a description does that an example lacks.
    """
    texts, there = captioned(examples, missing)
    described = split_roles(roles)[1]
    reading = [site for site in sites if any(role.applies_to(site.tower) for role in described)]
    if texts:
        pooled, every, counts = run(texts, reading, described)
    else:  # the shapes of a run, and nothing of it
        stand_in = Example(id=examples[0].id, image=None, prompt=examples[0].prompt)
        pooled, every, counts = run([stand_in], reading, described)
        pooled = {site: value[:0] for site, value in pooled.items()}
        every = {key: value[:0] for key, value in every.items()}
        counts = {key: value[:0] for key, value in counts.items()}
    for key, value in counts.items():
        full = np.zeros(len(examples), dtype=value.dtype)
        full[there] = value
        counts[key] = full
    together = dict(prompted[0])
    for site in reading:
        together[site] = _in_order(
            site, prompted[0].get(site), pooled[site], there, roles, examples
        )
    return together, {**prompted[1], **every}, {**prompted[2], **counts}


def _in_order(
    site: Site,
    prompted: np.ndarray | None,
    described: np.ndarray,
    there: np.ndarray,
    roles: Sequence[Role],
    examples: Sequence[Example],
) -> np.ndarray:
    """Positions of both runs in the order in which the roles were asked for."""
    full = np.full((len(examples), *described.shape[1:]), np.nan, dtype=described.dtype)
    full[there] = described
    n_prompted = 0 if prompted is None else prompted.shape[1]
    sources = {False: iter(range(n_prompted)), True: iter(range(described.shape[1]))}
    columns = []
    for role in roles_of(site, roles, pooled=True):
        own = role.base == CAPTION
        side = full if own or prompted is None else prompted
        columns.append(side[:, next(sources[own])])
    return np.stack(columns, axis=1) if columns else full[:, :0]
