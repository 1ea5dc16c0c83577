"""Every image-text-to-text architecture of the installed transformers, and its status.

An architecture is one `model_type`. It is verified where a family is registered for it and the
stored outcome of its proofs (`verified.json`, written by `lvlm-interp models --check --table PATH`)
has no failure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers

from lvlm_interp.errors import ModelError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.families import FAMILIES
from lvlm_interp.models.families.refused import REFUSED
from lvlm_interp.models.family import Family
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.proofs import Proof, prove

TABLE = Path(__file__).parent / "verified.json"
SIZES = ((48, 24), (24, 24), (24, 48))
"""Pictures of the tiny models."""


@dataclass(frozen=True)
class Architecture:
    """One line of the listing.

    Attributes:
        model_type: As in a configuration.
        status: `verified` or `refused`.
        reason: What was proved, or why it is refused.
    """

    model_type: str
    status: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """By name."""
        return {"model_type": self.model_type, "status": self.status, "reason": self.reason}


def model_types() -> list[str]:
    """The image-text-to-text architectures of the installed transformers."""
    from transformers.models.auto import modeling_auto

    return sorted(modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)


def listing() -> list[Architecture]:
    """All of them, with what is verified and what is refused."""
    return [architecture(model_type) for model_type in model_types()]


def architecture(model_type: str) -> Architecture:
    """One architecture of the listing."""
    family = registered().get(model_type)
    proof = stored_proofs().get(model_type)
    if family is None:
        unknown = 'It is not registered; family="auto" tries what can be proved.'
        return Architecture(model_type, "refused", REFUSED.get(model_type, unknown))
    if proof is None:
        return Architecture(model_type, "refused", "It is registered, but its proofs have not run.")
    if proof.failures:
        return Architecture(model_type, "refused", f"It is registered, but {proof.failures[0]}.")
    return Architecture(model_type, "verified", summary(proof))


def summary(proof: Proof) -> str:
    """What was proved, in one line."""
    places = "tokens have no place" if proof.boxes is None else f"{proof.placed} boxes"
    return (
        f"{proof.passed} sites, reads within {proof.reads:.0e}, writes {proof.writes:.0e}, "
        f"{places}, batches {proof.batches:.0e}, {proof.generated} of {proof.tokens} tokens"
    )


@cache
def registered() -> dict[str, Family]:
    """Families by `model_type`."""
    return {kind: family for family in FAMILIES for kind in family.model_types}


@cache
def stored_proofs() -> dict[str, Proof]:
    """What the stored table says, by `model_type`."""
    table = json.loads(TABLE.read_text())
    return {kind: Proof(**numbers) for kind, numbers in table["models"].items()}


def prove_tiny(model_type: str) -> Proof:
    """Run the proofs of an architecture on its tiny model.

    Raises:
        ModelError: It is not registered, or the installed transformers lacks it.
    """
    from lvlm_interp.models import zoo
    from lvlm_interp.models.zoo.pictures import rows

    if model_type not in zoo.CONFIGS or model_type not in model_types():
        raise ModelError(f"There is no tiny model of {model_type!r}: it is not registered here.")
    model = wrap(zoo.build(model_type))
    return prove(model, partial(rows, model), SIZES)


def write_table(proofs: Mapping[str, Proof], path: Path) -> None:
    """Store outcomes, with the versions that they hold for."""
    table = {
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "models": {kind: proof.to_dict() for kind, proof in proofs.items()},
    }
    atomic_write(path, json.dumps(table, indent=1, sort_keys=True) + "\n")


def write_listing(architectures: Iterable[Architecture], path: Path) -> None:
    """The listing as JSON: a list of objects with `model_type`, `status` and `reason`."""
    rows: list[Any] = [each.to_dict() for each in architectures]
    atomic_write(path, json.dumps(rows, indent=1) + "\n")
