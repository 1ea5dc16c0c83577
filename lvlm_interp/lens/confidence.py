"""Internal confidence: how sure image tokens are of a word, and whether that finds hallucinations.

Jiang et al. 2025, "Interpreting and Editing Vision-Language Representations to Mitigate
Hallucinations": c_o = max over layers l and image tokens i of softmax(W_U norm(h_l,i))_o, the
logit lens' probability of the object's word. Small c_o says that the object is not in the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from lvlm_interp.errors import UsageError
from lvlm_interp.lens.detection import auroc
from lvlm_interp.lens.logit_lens import LensResult, logit_lens
from lvlm_interp.lens.positions import example_names, in_batches
from lvlm_interp.lens.readout import apart
from lvlm_interp.lens.tuned_lens import TunedLens
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site


@dataclass(frozen=True, repr=False)
class Confidence(Result):
    """Internal confidence and output probability of each example.

    `table` has two rows per example: `internal_confidence` (with the `layer` and `position` of the
    maximum) and `output_probability` of the words asked for at the last position; columns `word`
    and `group`.
    """

    def detect(self, labels: Sequence[bool], *, seed: int = 0) -> ResultTable:
        """AUROC of telling positive examples (object present, or answer right) from the rest.

        Args:
            labels: One per example.
            seed: Of the shuffled baseline.

        Returns:
            One row per score: `internal_confidence`, the baseline `output_probability`, and
            `shuffled`, internal confidence against labels in random order; `value` and `estimate`
            are the area, with `low`, `high` (95%, by group) and `n`.

        Raises:
            UsageError: Not one label per example, or all of one kind.
        """
        frame = self.table.frame
        scores = {metric: part for metric, part in frame.groupby("metric", sort=False)}
        internal = scores["internal_confidence"]
        if len(labels) != len(internal):
            raise UsageError(f"Expected {len(internal)} labels, got {len(labels)}.")
        truth = np.asarray(labels, bool)
        mixed = np.random.default_rng(seed).permutation(truth)
        cases = [
            ("internal_confidence", internal, truth),
            ("output_probability", scores["output_probability"], truth),
            ("shuffled", internal, mixed),
        ]
        rows = []
        for name, part, wanted in cases:
            found = auroc(part["value"].to_numpy(), wanted, part["group"].to_numpy(str))
            rows.append(
                {
                    "score": name,
                    "metric": "auroc",
                    "value": found.estimate,
                    "unit": "area",
                    **found.to_dict(),
                }
            )
        return ResultTable(rows, self.table.provenance)


def internal_confidence(
    model: LVLM,
    examples: Sequence[Any],
    words: Sequence[str],
    *,
    outputs: Sequence[str] | str = "yes",
    sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
    lens: TunedLens | None = None,
    batch_size: int = 32,
    progress: bool = False,
) -> Confidence:
    """Internal confidence of one word per example.

    Args:
        model: The model.
        examples: What `model.prepare` takes, each with an image.
        words: The object (or attribute) in question, one per example; a word of several pieces
            counts by its first.
        outputs: Answer whose probability at the last position is the baseline, one for all or one
            per example.
        sites: Layers to look at; all residual streams by default.
        lens: Use this tuned lens in place of the logit lens.
        batch_size: Examples at once.
        progress: Show a bar.

    Raises:
        UsageError: Not one word per example, or there are none.
        InputError: An unknown word, or an example without an image.
    """
    answers = [outputs] * len(examples) if isinstance(outputs, str) else list(outputs)
    if not examples or len(words) != len(examples) or len(answers) != len(examples):
        raise UsageError(
            f"Expected one word and one output per example, got {len(words)} words and "
            f"{len(answers)} outputs for {len(examples)} examples."
        )
    read = logit_lens if lens is None else lens
    rows: list[dict[str, Any]] = []
    for span in in_batches(examples, batch_size, "internal confidence", progress):
        some = [examples[i] for i in span]
        inputs = model.prepare(some)
        # Each example asks for one word: words that share a piece never meet in one reading.
        found = {
            word: reading
            for some_words in apart(model, [words[i] for i in span])
            for reading in [read(model, inputs, sites=sites, top_k=1, words=tuple(some_words))]
            for word in some_words
        }
        probs = model.last_logits(inputs).float().softmax(-1)
        ids = torch.tensor([model.answer_id(answers[i]) for i in span], device=probs.device)
        baseline = probs.gather(1, ids[:, None])[:, 0].tolist()
        for row, (index, name) in enumerate(zip(span, example_names(inputs), strict=True)):
            given = bool(getattr(some[row], "id", ""))
            common = {
                "example": name if given else str(index),
                "group": getattr(some[row], "group", None) or (name if given else str(index)),
                "word": words[index],
                "tower": "text",
                "unit": "probability",
            }
            rows.append({**common, **_maximum(found[words[index]], words[index], row)})
            rows.append({**common, "metric": "output_probability", "value": baseline[row]})
    notes = provenance(model=model.name, dtype=str(model.dtype), tuned=lens is not None)
    return Confidence(ResultTable(pd.DataFrame(rows), notes))


def _maximum(found: LensResult, word: str, row: int) -> dict[str, Any]:
    mine = found.selection.rows == row
    if not mine.any():
        raise UsageError(f"Example {row} of the batch has no image tokens to read.")
    values = found.prob(word)[:, mine]
    site, token = np.unravel_index(values.argmax(), values.shape)
    return {
        "layer": found.sites[site].layer,
        "site": str(found.sites[site]),
        "position": str(found.selection.at[mine][token]),
        "metric": "internal_confidence",
        "value": float(values[site, token]),
    }
