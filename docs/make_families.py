"""Writes docs/families.md: every family x property 1 to 6, with the largest difference seen.

Run from the repository's root: `python docs/make_families.py`. The models are the tiny
random-weight ones of the tests (fp32), so the differences are those of the view, not of training.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.update({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HEAD = """# Families

Made by `python docs/make_families.py` on tiny random-weight models (fp32, one CPU core); the same
properties are tests (`tests/models`). Differences are the largest seen.

1. **reads**: block sums, pattern, z, output projections, unembedding, relative to the activations.
2. **writes**: sites at which a write has an effect, of those declared; and the change of the logits
   when every site is written with the value already there.
3. **token map**: boxes of pixels whose change moved exactly the tokens that the map gives.
4. **batches**: rows of unlike length and image size, against single runs.
5. **generation**: new tokens equal to those of transformers.
6. **image-bound**: ways to run without (all of) the image that are refused before a forward.

| family | 1 reads | 2 writes | 3 token map | 4 batches | 5 generation | 6 refused |
|---|---|---|---|---|---|---|
"""


def line(name: str) -> str:
    """The row of one family."""
    from lvlm_interp.models.loading import wrap
    from tests.models import processors, zoo

    model = wrap(zoo.build(name), processors.build(name))
    cells = [reads_and_writes(model), token_map(name), batches(model), generation(model)]
    return " | ".join([f"| {name}", *cells, f"{refusals(model)} |"])


def reads_and_writes(model: Any) -> str:
    """Cells 1 and 2."""
    import torch

    from lvlm_interp.models.selfcheck import inspect

    report = inspect(model)
    read = max(check.read_error or 0 for check in report.checks)
    inputs = sample(model)
    clean = model(inputs)
    with model.edit({"*": torch.clone}):
        same = float((model(inputs) - clean).abs().max())
    passed = len(report.checks) - len(report.failed)
    return f"{read:.0e} | {passed}/{len(report.checks)}, {same:.0e}"


def sample(model: Any, size: tuple[int, int] = (24, 24)) -> Any:
    """One row."""
    from tests.models.test_token_maps import QUESTION, picture

    return model.prepare([(picture(size), QUESTION)])


def token_map(name: str) -> str:
    """Cell 3."""
    import numpy as np

    from tests.models import test_token_maps as proof

    if name in proof.WITHOUT_GRID:
        return "says what holds"
    right = total = 0
    for size in proof.SIZES:
        model, image = proof.model_of(name), proof.picture(size)
        tokens = model.prepare([(image, proof.QUESTION)]).tokens[0]
        before = proof.merged(model, image)
        for left in range(0, size[0] - 5, 9):
            for top in range(0, size[1] - 5, 9):
                box = (left, top, left + 5, top + 5)
                moved = proof.merged(model, proof.changed(image, box)) - before
                found = np.flatnonzero(moved.abs().amax(-1).numpy() > 0)
                right += int(np.array_equal(found, tokens.within(box)))
                total += 1
    return f"{right}/{total}"


def batches(model: Any) -> str:
    """Cell 4."""
    from tests.models.test_token_maps import QUESTION, picture

    rows = [(picture((48, 48)), QUESTION + " the cat is red"), (picture((24, 48), 1), "the dog")]
    both = model.prepare(rows)
    logits, worst = model(both), 0.0
    for index, row in enumerate(rows):
        one = model.prepare([row])
        gap = logits[index, both.tokens[index].real] - model(one)[0, one.tokens[0].real]
        worst = max(worst, float(gap.abs().max()))
    return f"{worst:.0e}"


def generation(model: Any) -> str:
    """Cell 5."""
    from lvlm_interp.models.loading import wrap

    inputs = sample(model)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    theirs = model.hf.generate(**inputs.tensors, **options)[:, inputs["input_ids"].shape[1] :]
    ours = wrap(model.hf).generate(inputs, max_new_tokens=8, eos_token_id=None)
    return f"{int((ours == theirs).sum())}/{theirs.numel()}"


def refusals(model: Any) -> str:
    """Cell 6."""
    from lvlm_interp.errors import InputError

    inputs = sample(model)
    image = getattr(model.config, model.family.image_token)
    bare, fewer = inputs["input_ids"].clone(), inputs["input_ids"].clone()
    bare[bare == image] = 20
    fewer[0, int((fewer[0] == image).nonzero()[0])] = 20
    trials = [{k: v for k, v in inputs.items() if k != need} for need in model.family.needs]
    trials += [{**inputs, "input_ids": bare}, {**inputs, "input_ids": fewer}]
    refused = 0
    for trial in trials:
        try:
            model(trial)
        except InputError:
            refused += 1
    return f"{refused}/{len(trials)}"


def main() -> None:
    """Write the page."""
    import warnings

    from lvlm_interp.files import atomic_write
    from lvlm_interp.models.command import table
    from tests.models import zoo

    warnings.simplefilter("ignore")
    rows = "\n".join(line(name) for name in zoo.BUILDERS)
    sites = f"\n\n## Sites\n\nThe same as `lvlm-interp models` shows.\n\n```text\n{table()}\n```\n"
    atomic_write(ROOT / "docs" / "families.md", HEAD + rows + sites)


if __name__ == "__main__":
    main()
