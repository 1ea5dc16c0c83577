"""`lvlm-interp models`: the supported families, and the self-check of one checkpoint."""

from __future__ import annotations

import sys

from lvlm_interp.models.families import FAMILIES
from lvlm_interp.models.family import Family


def main(check: str | None = None, family: str | None = None) -> int:
    """Show the supported families, or check one checkpoint site by site.

    Args:
        check: Folder, hub id or shipped name of a checkpoint to load and self-check.
        family: With --check: `auto` for an architecture that is not registered.

    Returns:
        0, or 1 where a site failed.
    """
    if check is None:
        sys.stdout.write(table() + "\n")
        return 0
    from lvlm_interp.models.loading import load_model
    from lvlm_interp.models.selfcheck import inspect

    model = load_model(check, selfcheck=False, family=family)
    report = inspect(model)
    sys.stdout.write(f"{model!r}\n{report}\n")
    return 1 if report.failed else 0


def table() -> str:
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


def site_names(family: Family, tower: str) -> list[str]:
    """Names of the sites of a tower's blocks, and of what belongs to the tower as a whole."""
    data = next(each for each in family.towers if each.name == tower)
    parts = ["q", "k", "v", "rot_q", "rot_k", "scores", "pattern", "z", "attn_out"]
    names = ["resid_pre", *parts]
    if data.block.cross is not None:
        if data.block.cross.entry:
            names.append("resid_cross")
        names += [f"cross_{part}" for part in parts if not part.startswith("rot_")]
    names += ["resid_mid", "mlp_hidden", "mlp_out", "resid_post"]
    if tower == "text":
        names += ["embed", "final_norm", "logits"]
        if "deepstack" in family.special:
            names.append("deepstack")
    elif data.final_norm:
        names.append("final_norm")
    return names
