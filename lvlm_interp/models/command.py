"""`lvlm-interp models`: every architecture with its status, and the proofs of any of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvlm_interp.errors import UsageError
from lvlm_interp.models.families import FAMILIES
from lvlm_interp.models.family import Block, Family

if TYPE_CHECKING:
    from PIL import Image

    from lvlm_interp.models.proofs import Proof


def main(
    check: bool | str = False,
    family: str | None = None,
    json: Path | None = None,
    table: Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> int:
    """Show every architecture of the installed transformers, or prove some of them.

    Args:
        check: Alone: run the proofs of all verified architectures on tiny models. With a folder,
            hub id or shipped name: load that checkpoint, and self-check and prove it.
        family: With --check and a checkpoint: `auto` for an architecture that is not registered.
        json: Write the listing there: model_type, status (verified or refused) and reason of all.
        table: With --check alone: write the outcomes there; the package keeps `verified.json`.
        device: With a checkpoint: where it runs; auto is a GPU where there is one.
        dtype: With a checkpoint: of the weights; auto is its own.
        revision: Of a hub checkpoint.

    Returns:
        0, or 1 where a proof failed.

    Raises:
        UsageError: The options do not fit each other.
    """
    from lvlm_interp.models import listing

    if table is not None and check is not True:
        raise UsageError("--table stores the proofs of the tiny models: use it with --check alone.")
    if check is True:
        return _check_tiny(table)
    if check:
        loading = {"device": device, "dtype": dtype, "revision": revision}
        return _check_one(str(check), family, loading)
    found = listing.listing()
    if json is not None:
        listing.write_listing(found, json)
    else:
        sys.stdout.write(f"{overview()}\n\n{paragraphs()}\n")
    return 0


def _check_tiny(table: Path | None) -> int:
    from lvlm_interp.models import listing

    kinds = [kind for kind in listing.model_types() if kind in listing.registered()]
    proofs = {}
    for kind in kinds:
        proofs[kind] = proof = listing.prove_tiny(kind)
        mark = "; ".join(proof.failures) or "ok"
        sys.stdout.write(f"{kind:<24} {listing.summary(proof)}  {mark}\n")
    failed = sum(bool(proof.failures) for proof in proofs.values())
    sys.stdout.write(f"{len(proofs) - failed} of {len(proofs)} architectures are verified.\n")
    if table is not None:
        listing.write_table(proofs, table)
    return 1 if failed else 0


def _check_one(source: str, family: str | None, loading: dict[str, Any]) -> int:
    from lvlm_interp.models.loading import load_model
    from lvlm_interp.models.selfcheck import inspect

    model = load_model(source, selfcheck=False, family=family, **loading)
    report = inspect(model)
    sys.stdout.write(f"{model!r}\n{report}\n")
    if report.failed:
        return 1
    proof = _prove(model)
    for failure in proof.failures:
        sys.stdout.write(f"FAILED: {failure}\n")
    if not proof.failures:
        from lvlm_interp.models.listing import summary

        sys.stdout.write(f"proved: {summary(proof)}\n")
    return 1 if proof.failures else 0


def _prove(model: Any) -> Proof:
    """Proofs with the model's own processor; it may blend pixels, so without the token map."""
    from lvlm_interp.models.proofs import prove

    def make(pictures: Sequence[Image.Image], words: Sequence[int]) -> Any:
        rows = zip(pictures, words, strict=True)
        return model.prepare([(picture, " ".join(["what"] * n)) for picture, n in rows])

    return prove(model, make, ((96, 56), (56, 56), (56, 96)), places=False)


def overview() -> str:
    """One line per architecture: its `model_type`, its status and why."""
    from lvlm_interp.models.listing import listing

    found = listing()
    verified = sum(each.status == "verified" for each in found)
    lines = [f"{each.model_type:<24} {each.status:<9} {each.reason}" for each in found]
    return "\n".join([*lines, f"{verified} of {len(found)} architectures are verified."])


def paragraphs() -> str:
    """One paragraph per family: towers and sites, how the image enters, what is special."""
    return "\n\n".join(_paragraph(family) for family in FAMILIES)


def _paragraph(family: Family) -> str:
    lines = [family.name]
    for tower in family.towers:
        lines.append(f"  {tower.name:<9} {', '.join(site_names(family, tower.name))}")
    lines.append("  projector out")
    lines.append(f"  enters    {family.enters}")
    lines.append(f"  special   {family.special}")
    return "\n".join(lines)


PARTS = ["q", "k", "v", "rot_q", "rot_k", "scores", "pattern", "z", "attn_out"]


def site_names(family: Family, tower: str) -> list[str]:
    """Names of the sites of a tower's blocks, and of what belongs to the tower as a whole."""
    data = next(each for each in family.towers if each.name == tower)
    has = {name for block in (data.block, *data.block.others.values()) for name in _own(block)}
    crossed = [f"cross_{part}" for part in PARTS if not part.startswith("rot_")]
    if data.block.cross is not None:
        has |= {*crossed, *(["resid_cross"] if data.block.cross.entry else [])}
    order = ["resid_pre", *PARTS, "resid_cross", *crossed]
    names = [n for n in [*order, "resid_mid", "mlp_hidden", "mlp_out", "resid_post"] if n in has]
    if tower == "text":
        names += ["embed", "final_norm", "logits"]
        if "deepstack" in family.special:
            names.append("deepstack")
    elif data.final_norm:
        names.append("final_norm")
    return names


def _own(block: Block) -> list[str]:
    """Names of the sites of one make of block, without its cross-attention."""
    names = ["resid_pre", "mlp_out", "resid_post"]
    names += PARTS if block.attn else ["attn_out"] * bool(block.attn_out)
    names += ["resid_mid"] * bool(block.mlp_norm) + ["mlp_hidden"] * bool(block.down)
    return names
