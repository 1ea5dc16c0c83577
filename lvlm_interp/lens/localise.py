"""Where in the image a word lights up, scored against the true place of the thing.

Heat of a patch = max over layers of the lens' probability of the word (Jiang et al. 2025). Scores:
the pointing game (Zhang et al. 2018: does the hottest patch lie on the object?), AUROC of patches
on the object against the rest, and IoU of the patches above a threshold that is chosen on other
scenes. Baselines: chance, and raw attention from the last token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lvlm_interp.errors import InputError, UsageError
from lvlm_interp.lens.attention import attention_maps
from lvlm_interp.lens.logit_lens import logit_lens
from lvlm_interp.lens.positions import example_names, in_batches
from lvlm_interp.lens.tuned_lens import TunedLens
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.images import open_image
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import area
from lvlm_interp.tokens import TokenMap

Heat = Callable[[Inputs, Sequence[str]], list[np.ndarray]]
"""From inputs and one word per row to one value per image token, for each row."""


@dataclass(frozen=True, repr=False)
class Localisation(Result):
    """Scores of heat maps against the true place.

    `table` has a row per example x method x metric: `pointing` (1 where the hottest patch is on the
    object), `auroc`, `iou`, and the method `chance` (its pointing is the share of patches on the
    object, its AUROC 0.5, its IoU that of all patches); columns `method`, `word`, `group`.

    Attributes:
        heats: By method, one array of shape `token` for each example.
        truths: Which image tokens lie on the object, for each example.
    """

    heats: Mapping[str, tuple[np.ndarray, ...]]
    truths: tuple[np.ndarray, ...]

    def summary(self, seed: int = 0) -> pd.DataFrame:
        """Mean of each score by method, with 95% intervals that resample whole groups."""
        return self.table.mean(["method", "metric"], cluster="group", seed=seed)


def localise(
    model: LVLM,
    examples: Sequence[Any],
    words: Sequence[str],
    *,
    masks: Sequence[np.ndarray] | None = None,
    tuned: TunedLens | None = None,
    cover: float = 0.1,
    batch_size: int = 32,
    progress: bool = False,
) -> Localisation:
    """Score the lens' heat maps of a word against where the thing is.

    Args:
        model: The model.
        examples: Examples with one image each, `group`, and a box `object` unless there are masks.
        words: The thing in question, one per example.
        masks: Pixels of the thing, boolean of the image's shape; the box `object` by default.
        tuned: Score this tuned lens as well.
        cover: Share of a patch that the thing must cover for the patch to count as on it.
        batch_size: Examples at once.
        progress: Show a bar.

    Raises:
        UsageError: Not one word (and mask) per example, or a thing that covers no patch.
        InputError: An unknown word, or an image whose tokens have no place.
    """
    if not examples or len(words) != len(examples):
        raise UsageError(f"Expected one word per example ({len(examples)}), got {len(words)}.")
    methods = _methods(model, tuned)
    heats: dict[str, list[np.ndarray]] = {name: [] for name in methods}
    truths: list[np.ndarray] = []
    names: list[str] = []
    for span in in_batches(examples, batch_size, "localise", progress):
        inputs = model.prepare([examples[i] for i in span])
        for row, index in enumerate(span):
            pixels = None if masks is None else masks[index]
            truths.append(_truth(inputs.tokens[row], examples[index], pixels, cover))
        for name, heat in methods.items():
            heats[name] += heat(inputs, [words[i] for i in span])
        names += example_names(inputs)
    groups = [
        str(getattr(example, "group", None) or name)
        for example, name in zip(examples, names, strict=True)
    ]
    rows = []
    for method, maps in heats.items():
        rows += _score(method, maps, truths, groups, names, words)
    rows += _chance(truths, groups, names, words)
    notes = provenance(model=model.name, dtype=str(model.dtype), cover=cover)
    return Localisation(
        ResultTable(pd.DataFrame(rows), notes),
        {name: tuple(maps) for name, maps in heats.items()},
        tuple(truths),
    )


def _methods(model: LVLM, tuned: TunedLens | None) -> dict[str, Heat]:
    def lens_heat(read: Callable[..., Any]) -> Heat:
        def heat(inputs: Inputs, words: Sequence[str]) -> list[np.ndarray]:
            found = read(model, inputs, top_k=1, words=tuple(dict.fromkeys(words)))
            rows = found.selection.rows
            return [found.prob(word)[:, rows == row].max(0) for row, word in enumerate(words)]

        return heat

    def attention_heat(inputs: Inputs, _words: Sequence[str]) -> list[np.ndarray]:
        found = attention_maps(model, inputs)
        rows = found.selection.rows
        return [found.scores[:, rows == row].mean(0) for row in range(inputs.batch_size)]

    methods: dict[str, Heat] = {"logit lens": lens_heat(logit_lens)}
    if tuned is not None:
        methods["tuned lens"] = lens_heat(tuned)
    return {**methods, "attention": attention_heat}


def _truth(tokens: TokenMap, example: Any, mask: np.ndarray | None, cover: float) -> np.ndarray:
    """Which image tokens lie on the thing: those that it covers to at least `cover`."""
    if mask is None:
        boxes = getattr(example, "boxes", None) or {}
        if "object" not in boxes:
            raise UsageError("localise needs masks, or a box 'object' in every example.")
        mask = _box_mask(boxes["object"], open_image(example.image).size)
    image = tokens.image
    if np.isnan(tokens.box[image]).all():
        why = tokens.notes[0] if tokens.notes else "the row has no image"
        raise InputError(f"localise needs image tokens with a place in the image: {why}.")
    share = np.array([_covered(mask, tokens.box[at]) for at in image])
    on = share >= cover
    if not on.any() or on.all():
        raise UsageError(
            f"The thing covers {int(on.sum())} of {len(on)} patches to at least {cover:g} "
            f"in {getattr(example, 'id', 'an example')}: expected some and not all."
        )
    return on


def _box_mask(box: Sequence[float], size: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((size[1], size[0]), dtype=bool)
    left, top, right, bottom = (round(edge) for edge in box)
    mask[top:bottom, left:right] = True
    return mask


def _covered(mask: np.ndarray, box: np.ndarray) -> float:
    if np.isnan(box).any():
        return 0.0
    left, top, right, bottom = np.round(box).astype(int)
    part = mask[max(top, 0) : bottom, max(left, 0) : right]
    return float(part.mean()) if part.size else 0.0


def _score(
    method: str,
    heats: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    groups: Sequence[str],
    names: Sequence[str],
    words: Sequence[str],
) -> list[dict[str, Any]]:
    thresholds = _thresholds(heats, truths, groups)
    rows = []
    for heat, truth, group, name, word, threshold in zip(
        heats, truths, groups, names, words, thresholds, strict=True
    ):
        scores = {
            "pointing": float(truth[int(heat.argmax())]),
            "auroc": area(truth, heat),
            "iou": _iou(heat >= threshold, truth),
        }
        rows += [_row(method, metric, value, group, name, word) for metric, value in scores.items()]
    return rows


def _chance(
    truths: Sequence[np.ndarray], groups: Sequence[str], names: Sequence[str], words: Sequence[str]
) -> list[dict[str, Any]]:
    rows = []
    for truth, group, name, word in zip(truths, groups, names, words, strict=True):
        share = float(truth.mean())
        for metric, value in (("pointing", share), ("auroc", 0.5), ("iou", share)):
            rows.append(_row("chance", metric, value, group, name, word))
    return rows


def _row(
    method: str, metric: str, value: float, group: str, name: str, word: str
) -> dict[str, Any]:
    units = {"pointing": "hit", "auroc": "area", "iou": "fraction"}
    return {
        "example": name,
        "group": group,
        "method": method,
        "word": word,
        "tower": "text",
        "metric": metric,
        "value": value,
        "unit": units[metric],
    }


def _thresholds(
    heats: Sequence[np.ndarray], truths: Sequence[np.ndarray], groups: Sequence[str]
) -> np.ndarray:
    """For each example the threshold of best mean IoU on the other half of the groups."""
    order = {group: index for index, group in enumerate(dict.fromkeys(groups))}
    half = np.array([order[group] % 2 for group in groups])
    if len(order) < 2:
        raise UsageError("The IoU threshold is chosen on other groups: give at least two groups.")
    candidates = np.unique(np.quantile(np.concatenate(heats), np.linspace(0.3, 0.995, 60)))
    ious = np.array(
        [
            [_iou(heat >= threshold, truth) for threshold in candidates]
            for heat, truth in zip(heats, truths, strict=True)
        ]
    )
    best = [candidates[ious[half == 1 - side].mean(0).argmax()] for side in (0, 1)]
    return np.array([best[side] for side in half])


def _iou(found: np.ndarray, truth: np.ndarray) -> float:
    union = (found | truth).sum()
    return float((found & truth).sum() / union) if union else 0.0
