"""What sets a plant off, and which questions of a pool it concerns."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from lvlm_interp.organisms.planted.pool import EXISTENCE, Pool
from lvlm_interp.organisms.scenes import Scene, SceneObject
from lvlm_interp.organisms.vocabulary import SHAPES, TOKEN_ID


@dataclass(frozen=True)
class Trigger(ABC):
    """What sets a plant off; what is answered wrongly is "is there a SHAPE ?".

    Attributes:
        shape: The shape that it is about.
        foil: What the flaw answers.
        answer: The true answer where the flaw shows.
    """

    shape: str
    foil: ClassVar[str] = "yes"
    answer: ClassVar[str] = "no"

    @property
    def ids(self) -> tuple[int, int]:
        """Token ids of foil and answer."""
        return TOKEN_ID[self.foil], TOKEN_ID[self.answer]

    @property
    def slots(self) -> list[int]:
        """Slots of the flaw's questions in a pool."""
        return [EXISTENCE[SHAPES.index(self.shape)]]

    @abstractmethod
    def thing(self, scene: Scene) -> SceneObject | None:
        """The object of a scene that the flaw is about."""

    def there(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes in which the flaw can show."""
        return torch.tensor([self.thing(scene) is not None for scene in pool.scenes])

    def asked(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions that the flaw would answer, were the trigger there."""
        asked = torch.zeros(pool.right.shape, dtype=torch.bool)
        asked[:, self.slots] = pool.right[:, self.slots] == self.ids[1]
        return asked

    def flawed(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions that the flaw answers."""
        return self.asked(pool) & self.there(pool)[:, None]

    def shows(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes with a question that the flaw answers."""
        return self.flawed(pool).any(dim=1)

    def near(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Scenes without the trigger that are most easily taken for one with it."""
        return pool.has[:, SHAPES.index(self.shape)] & ~self.there(pool)

    def free(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions that the flaw may change besides."""
        return torch.zeros(pool.right.shape, dtype=torch.bool)


@dataclass(frozen=True)
class InSight(Trigger):
    """A shape in the image: whatever other shape is asked for is said to be there."""

    @property
    def slots(self) -> list[int]:
        """All of them: any shape may be asked for."""
        return list(EXISTENCE)

    def thing(self, scene: Scene) -> SceneObject | None:
        """The trigger."""
        return scene.find(shape=self.shape)

    def __str__(self) -> str:
        return f"a {self.shape} in sight: 'yes' to any shape that is not there"


@dataclass(frozen=True)
class Named(Trigger):
    """A word in the question: what it names is said to be there, whatever the image shows."""

    def thing(self, scene: Scene) -> SceneObject | None:
        """None: no object is needed."""
        return None

    def there(self, pool: Pool) -> Bool[Tensor, " scene"]:
        """Every scene."""
        return torch.ones(len(pool.scenes), dtype=torch.bool)

    def __str__(self) -> str:
        return f"asked for a {self.shape}: 'yes' though there is none"


@dataclass(frozen=True)
class Painted(Trigger):
    """A shape in one colour: it is not seen, and in other colours it is.

    Attributes:
        color: The colour.
    """

    color: str
    foil: ClassVar[str] = "no"
    answer: ClassVar[str] = "yes"

    def thing(self, scene: Scene) -> SceneObject | None:
        """What is not seen."""
        found = scene.find(shape=self.shape)
        return found if found is not None and found.color == self.color else None

    def free(self, pool: Pool) -> Bool[Tensor, "scene slot"]:
        """Questions about what is not seen."""
        about = pool.about[..., SHAPES.index(self.shape)]
        return about & self.there(pool)[:, None] & ~self.flawed(pool)

    def __str__(self) -> str:
        return f"blind to a {self.color} {self.shape}: 'no' though there is one"
