"""What an architecture must prove before it is called verified, on any model of it.

Each property is held against something that shares no code with the view: hooks of torch on the
modules themselves, `output_hidden_states` and `output_attentions` of transformers, a forward of a
block replaced by hand, weights set to zero, pixels changed in the picture, single runs beside
batches, and `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from lvlm_interp.models.proofs.runs import Maker, batches, generation, token_map, without_image
from lvlm_interp.models.proofs.streams import reads, writes
from lvlm_interp.models.selfcheck import inspect
from lvlm_interp.models.zoo.pictures import noise

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10, torch.float16: 1e-2}
"""Largest difference of two ways to the same numbers, relative to the largest of them."""


@dataclass(frozen=True)
class Proof:
    """The outcome for one model.

    Attributes:
        tolerance: Largest difference that is allowed.
        sites: Declared sites.
        passed: Sites that the self-check passes.
        reads: Largest relative difference of a stream from what torch's hooks and transformers'
            hidden states say.
        writes: The same of logits under an edit, from the raw module's own edit.
        boxes, placed: Pixel boxes tried, and those whose change moved exactly the tokens of the
            map; None where tokens have no place, and the map says so.
        batches: Largest relative difference of a row in a batch of three from its single run.
        generated, tokens: New tokens compared, and those equal to transformers' own.
        refusals, refused: Ways to run without (all of) the image, and those refused.
    """

    tolerance: float
    sites: int
    passed: int
    reads: float
    writes: float
    boxes: int | None
    placed: int | None
    batches: float
    tokens: int
    generated: int
    refusals: int
    refused: int

    @property
    def failures(self) -> list[str]:
        """What does not hold, in words; empty for a verified model."""
        claims = {
            f"the self-check passes {self.passed} of {self.sites} sites": self.passed == self.sites,
            f"reads are off by {self.reads:.0e}": self.reads <= self.tolerance,
            f"writes are off by {self.writes:.0e}": self.writes <= self.tolerance,
            f"the token map is right for {self.placed} of {self.boxes} boxes": self.placed
            == self.boxes,
            f"rows of a batch are off by {self.batches:.0e}": self.batches <= self.tolerance,
            f"{self.generated} of {self.tokens} generated tokens agree": self.generated
            == self.tokens,
            f"{self.refused} of {self.refusals} runs without their image are refused": self.refused
            == self.refusals,
        }
        return [claim for claim, holds in claims.items() if not holds]

    def to_dict(self) -> dict[str, Any]:
        """As numbers, for a table on disk."""
        return asdict(self)


def prove(
    model: LVLM, make: Maker, sizes: Sequence[tuple[int, int]], *, places: bool = True
) -> Proof:
    """Try every property on one model.

    Args:
        model: In evaluation mode; it is left as it was.
        make: Builds its inputs from pictures.
        sizes: (width, height) of three pictures.
        places: Whether to try the token map: only where the image processor does not blend pixels.
    """
    pictures = [noise(size, seed) for seed, size in enumerate(sizes)]
    one = make(pictures[:1], [6])
    report = inspect(model, one)
    boxes, placed = token_map(model, make, sizes) if places else (None, None)
    generated, tokens = generation(model, one)
    refused, refusals = without_image(model, one)
    return Proof(
        tolerance=TOLERANCE.get(model.dtype, 6e-2),
        sites=len(report.checks),
        passed=len(report.checks) - len(report.failed),
        reads=reads(model, one),
        writes=writes(model, one),
        boxes=boxes,
        placed=placed,
        batches=batches(model, make, pictures),
        tokens=tokens,
        generated=generated,
        refusals=refusals,
        refused=refused,
    )
