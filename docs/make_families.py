"""Writes docs/families.md: every architecture, what was proved of it or why it is refused.

Run from the repository's root: `python docs/make_families.py`. The numbers are those that
`lvlm-interp models --check --table lvlm_interp/models/verified.json` stored, on the tiny
random-weight models of `lvlm_interp.models.zoo` (fp32), so the differences are those of the view,
not of training.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEAD = """# Architectures

{verified} of the {total} image-text-to-text architectures of transformers {version} are verified.
`lvlm-interp models` prints this list, `--json OUT` writes it, and `lvlm-interp models --check`
proves the verified ones again on tiny random-weight models (fp32); the same proofs are tests
(`tests/models/test_listing.py`). Differences are the largest seen, relative to the largest number.

1. **sites**: declared sites that the self-check passes: each reads what its neighbours say (block
   sums, pattern, z, projections, unembedding), and writing there has an effect.
2. **reads**: streams against hooks of torch and transformers' hidden states, patterns against its
   eager attention.
3. **writes**: an edited stream against a replaced forward, a zeroed head and a silenced MLP against
   the same done to the raw modules, and every site written with what is already there.
4. **places**: boxes of pixels whose change moved exactly the tokens that the map gives, and in the
   vision tower only patches that the map puts behind them.
5. **batches**: a row of three unlike rows against its single run: logits, vision tower, projector.
6. **tokens**: generated tokens equal to those of transformers.
7. **refused**: ways to run without (all of) the image that are refused before a forward.

| model_type | 1 sites | 2 reads | 3 writes | 4 places | 5 batches | 6 tokens | 7 refused |
|---|---|---|---|---|---|---|---|
"""


def line(kind: str, proof: Any) -> str:
    """The row of one verified architecture."""
    places = "none, and said" if proof.boxes is None else f"{proof.placed}/{proof.boxes}"
    cells = [
        f"`{kind}`",
        f"{proof.passed}/{proof.sites}",
        f"{proof.reads:.0e}",
        f"{proof.writes:.0e}",
        places,
        f"{proof.batches:.0e}",
        f"{proof.generated}/{proof.tokens}",
        f"{proof.refused}/{proof.refusals}",
    ]
    return f"| {' | '.join(cells)} |"


def page() -> str:
    """The whole page."""
    from lvlm_interp.models import listing
    from lvlm_interp.models.command import paragraphs

    found, proofs = listing.listing(), listing.stored_proofs()
    verified = [each.model_type for each in found if each.status == "verified"]
    version = json.loads(listing.TABLE.read_text())["transformers"]
    head = HEAD.format(verified=len(verified), total=len(found), version=version)
    refused = [
        f"- `{each.model_type}`: {each.reason}" for each in found if each.status == "refused"
    ]
    parts = [
        head + "\n".join(line(kind, proofs[kind]) for kind in verified),
        "## Refused, and why\n\n" + "\n".join(refused),
        f"## Sites\n\nThe same as `lvlm-interp models` shows.\n\n```text\n{paragraphs()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page."""
    from lvlm_interp.files import atomic_write

    atomic_write(ROOT / "docs" / "families.md", page())


if __name__ == "__main__":
    main()
