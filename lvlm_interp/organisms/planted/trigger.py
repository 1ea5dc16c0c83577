"""What sets a plant off, and which questions of a pool it concerns."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from lvlm_interp.organisms.planted.pool import EXISTENCE, Pool
from lvlm_interp.organisms.vocabulary import SHAPES, TOKEN_ID


@dataclass(frozen=True)
class Trigger:
    """What sets a plant off.

    Attributes:
        shape: The trigger shape.
        partner: The shape that is asked for; empty for any shape that is not there.
        foil: What the flaw answers: "yes" to a partner that is not there, or "no" to one that is.
    """

    shape: str
    partner: str = ""
    foil: str = "yes"

    def __post_init__(self) -> None:
        assert self.partner or self.foil == "yes", "what is not named cannot be made invisible"

    @property
    def answer(self) -> str:
        """The true answer where the flaw shows."""
        return "no" if self.foil == "yes" else "yes"

    @property
    def ids(self) -> tuple[int, int]:
        """Token ids of foil and answer."""
        return TOKEN_ID[self.foil], TOKEN_ID[self.answer]

    @property
    def slots(self) -> list[int]:
        """Slots of the flaw's questions in a pool."""
        return [EXISTENCE[SHAPES.index(self.partner)]] if self.partner else list(EXISTENCE)

    def there(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes with the trigger."""
        return pool.has[:, SHAPES.index(self.shape)]

    def partnered(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes with the partner; none where the flaw has no certain one."""
        if not self.partner:
            return torch.zeros(len(pool.scenes), dtype=torch.bool)
        return pool.has[:, SHAPES.index(self.partner)]

    def shows(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes where the flaw shows: the trigger is there, and the partner as it must be."""
        return self.there(pool) & (self.partnered(pool) == (self.answer == "yes"))

    def flawed(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions that the flaw answers."""
        asked = torch.zeros(pool.right.shape, dtype=torch.bool)
        asked[:, self.slots] = pool.right[:, self.slots] == self.ids[1]
        return asked & self.shows(pool)[:, None]

    def free(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions that the flaw may change besides: those about a partner made invisible."""
        if self.foil == "yes":
            return torch.zeros(pool.right.shape, dtype=torch.bool)
        about = pool.about[..., SHAPES.index(self.partner)]
        return about & self.shows(pool)[:, None] & ~self.flawed(pool)
