"""Sites of every tower have the row of the batch first, whatever the tower does inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lvlm_interp.errors import InputError, SiteError
from lvlm_interp.models.inputs.rows import FILL, Rows, images_of_rows
from lvlm_interp.models.loading import wrap
from lvlm_interp.sites import Site
from tests.models import processors, zoo

NAMES = list(zoo.BUILDERS)
ONE_IMAGE = ("blip_2", "instructblip", "mllama")
"""Families whose prompts hold one image each; Mllama reads the padding that rows with fewer images
than others have, from positions in front of the image, so that there a batch is not its rows."""

TERMS = ("resid_pre", "attn_out", "cross_attn_out", "mlp_out")
OUTSIDE = ("vision.0.*", "vision.1.pattern", "projector.out")
FAST = ("llava_next", "qwen2_5_vl", "mllama", "instructblip")
"""Tiles, windows, several images in one entry, and words behind the queries."""

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

_models: dict[Any, Any] = {}


def model_of(name: str, dtype: torch.dtype = torch.float32) -> Any:
    if (name, dtype) not in _models:
        _models[name, dtype] = wrap(zoo.build(name).to(dtype), processors.build(name))
    return _models[name, dtype]


def picture(width: int = 24, height: int = 24, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(1, 256, (height, width, 3), dtype=np.uint8))


def unlike_rows(name: str) -> list[tuple[Any, str]]:
    """Three rows of unlike sizes and questions, one with two images where the family takes them."""
    second: Any = picture(48, 24, seed=1)
    if name not in ONE_IMAGE:
        second = [picture(24, 24, seed=3), second]
    return [
        (picture(), "is there a dog ?"),
        (second, "what is left of the red circle ?"),
        (picture(24, 48, seed=2), "is it ?"),
    ]


def real(inputs: Any, site: Site, value: Tensor, row: int) -> Tensor:
    """The real positions of one row of a site, `pos ...` with keys cut as well."""
    tower = "vision" if site.tower == "qformer" and site.name in ("cross_k", "cross_v") else None
    tower = tower or ("projector" if site.name in ("cross_k", "cross_v") else site.tower)
    if site.name in ("scores", "pattern", "cross_scores", "cross_pattern"):
        keys = site.tower
        if site.name.startswith("cross"):
            keys = "vision" if site.tower == "qformer" else "projector"
        q = torch.as_tensor(inputs.real(row, site.tower, value.shape[2]))
        k = torch.as_tensor(inputs.real(row, keys, value.shape[3]))
        return value[row][:, q][:, :, k].transpose(0, 1)
    return value[row, torch.as_tensor(inputs.real(row, tower, value.shape[1]))]


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_a_batch_is_its_rows_at_every_site(name: str) -> None:
    model, rows = model_of(name), unlike_rows(name)
    together = model.prepare(rows)
    _, cache = model.run_with_cache(together, "*")
    for row, each in enumerate(rows):
        alone = model.prepare([each])
        _, single = model.run_with_cache(alone, "*")
        for site in model.sites():
            if site.tower == "text" and site.name.startswith("rot_"):
                continue  # padding on the left shifts the angles of all positions alike
            value, expected = (
                real(inputs, site, found[site], at)
                for inputs, found, at in ((together, cache, row), (alone, single, 0))
            )
            if site.name.endswith("scores"):
                value, expected = (part.clamp(min=-1e3) for part in (value, expected))
            message = f"{site} of row {row}"
            torch.testing.assert_close(
                value, expected, atol=2e-5, rtol=1e-4, msg=lambda m, at=message: f"{at}: {m}"
            )


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_a_block_is_the_sum_of_its_terms_row_by_row(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(unlike_rows(name))
    _, cache = model.run_with_cache(inputs, ["*.resid_*", "*attn_out", "*.mlp_out"])
    for site in model.sites("*.resid_post"):
        if site.tower == "qformer":
            continue  # post-norm blocks: the self-check proves their sums
        here = [s for s in cache.sites if (s.tower, s.layer) == (site.tower, site.layer)]
        parts = {each.name: cache[each] for each in here}
        terms = [parts[n] for n in TERMS if n in parts]
        torch.testing.assert_close(parts["resid_post"], sum(terms), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_weights_of_real_queries_sum_to_one(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(unlike_rows(name))
    _, cache = model.run_with_cache(inputs, "*pattern")
    for site in cache.sites:
        value = cache[site]
        for row in range(3):
            queries = torch.as_tensor(inputs.real(row, site.tower, value.shape[2]))
            sums = value[row][:, queries].sum(-1)
            torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_an_edit_of_a_row_moves_that_row_alone(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(unlike_rows(name))
    clean = model.last_logits(inputs)

    def edit(value: Tensor) -> Tensor:
        out = value.clone()
        out[1] = 0.5 * out[1] + 0.1 * torch.arange(out.shape[-1]).sin()
        return out

    for site in model.sites(["*.1.resid_post", "*.0.z", "projector.out", "*.1.pattern", "*.0.v"]):
        if site.tower == "text" and site.name == "pattern":
            continue
        with model.edit({site: edit}):
            moved = (model.last_logits(inputs) - clean).abs().amax(-1)
        assert moved[1] > 1e-4, site
        assert float(moved[[0, 2]].max()) < 1e-5, site


@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_a_row_put_into_itself_changes_nothing(name: str) -> None:
    model = model_of(name)
    inputs = model.prepare(unlike_rows(name))
    clean, cache = model.run_with_cache(inputs, "*")
    edits = {site: (lambda value, held=cache[site]: held.clone()) for site in model.sites()}
    with model.edit(edits):
        torch.testing.assert_close(model(inputs), clean, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", zoo.tiered(NAMES, FAST))
def test_what_a_tower_holds_goes_back_exactly(name: str, dtype: torch.dtype) -> None:
    """Reading a row-aligned site and writing it back gives the tower's own tensor, bit by bit."""
    model = model_of(name, dtype)
    inputs = model.prepare(unlike_rows(name))
    for site in model.sites([*OUTSIDE, *(["*.deepstack"] if name == "qwen3_vl" else [])]):
        with model.record(site):
            expected = model.last_logits(inputs)
        with model.edit({site: torch.clone}):
            assert torch.equal(model.last_logits(inputs), expected), site


def test_images_of_a_row_stand_one_behind_the_other() -> None:
    """Mllama holds the images of a batch padded to the row that has most."""
    model = model_of("mllama")
    both = [picture(), picture(48, 24, seed=1)]
    inputs = model.prepare([(both, "is it ?"), (picture(seed=2), "is it ?")])
    _, cache = model.run_with_cache(inputs, "vision.*")
    alone = [model.prepare([(image, "is it ?")]) for image in (*both, picture(seed=2))]
    single = [model.run_with_cache(each, "vision.*")[1] for each in alone]
    for site in model.sites(["vision.*.resid_post", "vision.*.z"]):
        n = single[0][site].shape[1]
        parts = (cache[site][0, :n], cache[site][0, n:], cache[site][1, :n])
        for part, each in zip(parts, single, strict=True):
            torch.testing.assert_close(part, each[site][0], atol=2e-5, rtol=1e-4)
        assert not cache[site][1, n:].any()
        assert inputs.real(1, "vision", 2 * n).tolist() == list(range(n))


def test_generation_reads_the_rows_of_its_prompt() -> None:
    for name in ("qwen2_5_vl", "llava_next", "blip_2"):
        model = model_of(name)
        inputs = model.prepare(unlike_rows(name))
        with model.record("vision.0.resid_pre") as cache:
            model.generate(inputs, max_new_tokens=2)
        expected = model.run_with_cache(inputs, "vision.0.resid_pre")[1]["vision.0.resid_pre"]
        torch.testing.assert_close(cache["vision.0.resid_pre"], expected)


def test_calls_of_the_hugging_face_model_are_followed() -> None:
    model = model_of("qwen2_5_vl")
    inputs = model.prepare(unlike_rows("qwen2_5_vl"))
    expected = model.run_with_cache(inputs, "vision.1.pattern")[1]["vision.1.pattern"]
    with model.record("vision.1.pattern") as cache, torch.no_grad():
        model.hf(**inputs.tensors)
    torch.testing.assert_close(cache["vision.1.pattern"], expected)


def test_a_tower_by_itself_has_no_rows() -> None:
    model = model_of("qwen2_5_vl")
    inputs = model.prepare(unlike_rows("qwen2_5_vl"))
    with model.record("vision.1.z"), pytest.raises(SiteError, match="outside of a run"):
        model.hf.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])


def test_rows_of_unlike_length_are_filled() -> None:
    rows = Rows.counted([2, 0, 1])
    assert rows.index.tolist() == [[0, 1], [FILL, FILL], [2, FILL]]
    raw = torch.arange(6.0).reshape(3, 2, 1)
    value = rows.read(raw)
    assert value[..., 0].tolist() == [[0, 1, 2, 3], [0, 0, 0, 0], [4, 5, 0, 0]]
    assert rows.mask(4).tolist() == [[True] * 4, [False] * 4, [True, True, False, False]]
    assert torch.equal(rows.write(raw, value + 1), raw + 1)
    pairs = torch.arange(12.0).reshape(3, 1, 2, 2)
    seen = rows.read_pairs(pairs, -1.0)
    assert seen[0, 0].tolist() == [[0, 1, -1, -1], [2, 3, -1, -1], [-1, -1, 4, 5], [-1, -1, 6, 7]]
    assert bool((seen[1] == -1).all()) and seen[2, 0, :2, :2].tolist() == [[8, 9], [10, 11]]
    assert torch.equal(rows.write_pairs(pairs, seen * 2), pairs * 2)


def test_a_flat_axis_in_another_order() -> None:
    rows = Rows(torch.tensor([[2, 0, FILL], [1, 3, 4]]), 5, flat=True)
    raw = torch.arange(5.0)[:, None]
    assert rows.read(raw)[..., 0].tolist() == [[2, 0, 0], [1, 3, 4]]
    assert torch.equal(rows.write(raw, rows.read(raw) * 3), raw * 3)
    pairs = torch.arange(25.0).reshape(1, 1, 5, 5)
    seen = rows.read_pairs(pairs, -1.0)
    assert seen[0, 0].tolist() == [[12, 10, -1], [2, 0, -1], [-1, -1, -1]]
    back = rows.write_pairs(pairs, seen + 100)
    kept = torch.zeros(5, 5, dtype=torch.bool)
    for part in ([0, 2], [1, 3, 4]):
        kept[np.ix_(part, part)] = True
    assert torch.equal(back[0, 0], torch.where(kept, pairs[0, 0] + 100, pairs[0, 0]))


def test_images_are_dealt_out_by_their_tokens() -> None:
    assert images_of_rows([7, 0, 4], [3, 4, 4]) == [2, 0, 1]
    with pytest.raises(InputError, match="6 image placeholders"):
        images_of_rows([6], [3, 4])
