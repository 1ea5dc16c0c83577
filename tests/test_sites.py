"""Sites: parsing, formatting, globs and the spellings of TransformerLens."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lvlm_interp.errors import SiteError
from lvlm_interp.sites import LAYERLESS, SHAPES, TOWERS, Site, from_transformer_lens, select

BLOCK_NAMES = sorted(name for name in SHAPES if name not in LAYERLESS)

block_sites = st.builds(
    Site, st.sampled_from(TOWERS), st.integers(0, 200), st.sampled_from(BLOCK_NAMES)
)
whole_sites = st.builds(
    Site,
    st.sampled_from(TOWERS),
    st.none(),
    st.sampled_from([name for name in LAYERLESS if name != "logits"]),
) | st.just(Site("text", None, "logits"))
sites = block_sites | whole_sites


@given(sites)
def test_a_site_survives_its_own_text(site: Site) -> None:
    assert Site.parse(str(site)) == site
    assert Site.parse(site) is site


@given(st.text(max_size=40))
def test_any_text_parses_or_raises_a_site_error(text: str) -> None:
    try:
        site = Site.parse(text)
    except SiteError:
        return
    assert site.tower in TOWERS and site.name in SHAPES


@given(block_sites.filter(lambda site: site.tower == "text"))
def test_transformer_lens_names_mean_the_same_site(site: Site) -> None:
    try:
        name = site.to_transformer_lens()
    except SiteError:
        assert site.name not in ("z", "q", "k", "v", "pattern", "resid_pre", "resid_post")
        return
    assert name.startswith(f"blocks.{site.layer}.")
    assert Site.parse(name) == site
    assert from_transformer_lens(name) == str(site)


def test_the_spellings_of_transformer_lens_are_those_of_its_hooks() -> None:
    pairs = {
        "blocks.14.hook_resid_post": "text.14.resid_post",
        "blocks.0.attn.hook_z": "text.0.z",
        "blocks.3.attn.hook_pattern": "text.3.pattern",
        "blocks.*.hook_mlp_out": "text.*.mlp_out",
        "ln_final.hook_normalized": "text.final_norm",
    }
    assert {name: from_transformer_lens(name) for name in pairs} == pairs
    assert Site("text", None, "final_norm").to_transformer_lens() == "ln_final.hook_normalized"
    with pytest.raises(SiteError, match="no name for the site vision"):
        Site("vision", 0, "z").to_transformer_lens()


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("text.3.resid_pots", "'resid_post'"),
        ("txt.3.z", "'text'"),
        ("blocks.3.hook_resid_pots", r"'blocks\.3\.hook_resid_post'"),
        ("text.z", "tower.layer.name"),
        ("text.one.z", "tower.layer.name"),
    ],
)
def test_a_wrong_name_names_the_nearest_right_one(text: str, hint: str) -> None:
    with pytest.raises(SiteError, match=hint):
        Site.parse(text)


def declared() -> list[Site]:
    blocks = [
        Site(tower, layer, name)
        for tower in ("vision", "text")
        for layer in range(12)
        for name in ("resid_pre", "z", "resid_post")
    ]
    return [*blocks, Site("projector", None, "out"), Site("text", None, "logits")]


@given(
    st.sampled_from(["*", "text.*", "*.z", "text.1*.resid_*", "vision.[0-3].z", "projector.out"])
)
def test_a_glob_selects_what_fnmatch_selects_in_the_models_order(pattern: str) -> None:
    expected = [site for site in declared() if fnmatch.fnmatchcase(str(site), pattern)]
    assert select(pattern, declared()) == expected


@given(st.lists(st.sampled_from(declared()), min_size=1, max_size=6))
def test_several_patterns_are_their_union_without_repeats(chosen: list[Site]) -> None:
    expected = [site for site in declared() if site in chosen]
    assert select(chosen, declared()) == expected
    assert select(",".join(str(site) for site in chosen), declared()) == expected
    assert select([str(site) for site in chosen], declared()) == expected


def test_what_matches_nothing_is_an_error_with_the_nearest_site() -> None:
    with pytest.raises(SiteError, match=r"nearest site it has is 'text\.2\.z'"):
        select("text.12.z", declared())
    with pytest.raises(SiteError, match="matches"):
        select(["text.0.z", "qformer.*"], declared())


@given(sites)
def test_axes_say_whether_there_are_heads(site: Site) -> None:
    assert site.has_heads == any(axis in ("head", "kv_head") for axis in site.shape.split())
