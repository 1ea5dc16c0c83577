"""The listing of all architectures: what it says was proved, and can be proved again."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers

from lvlm_interp.cli import main
from lvlm_interp.errors import InputError, ModelError
from lvlm_interp.models import listing, zoo
from lvlm_interp.models.families import FAMILIES
from lvlm_interp.models.families.refused import REFUSED
from lvlm_interp.models.loading import wrap
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.proofs import prove
from lvlm_interp.models.zoo.pictures import rows
from tests.models.zoo import tiered

FAST = ("mistral3", "aya_vision", "qwen3_5", "glm4v_moe")
"""Packed images of any size, parallel blocks, linear recurrences with gates, experts."""


def test_the_listing_has_every_architecture_once(tmp_path: Path) -> None:
    out = tmp_path / "listing.json"
    assert main(["models", "--json", str(out)]) == 0
    found = json.loads(out.read_text())
    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    assert sorted(each["model_type"] for each in found) == sorted(names)
    assert {each["status"] for each in found} == {"verified", "refused"}
    assert sum(each["status"] == "verified" for each in found) >= 30
    for each in found:
        reason = each["reason"]
        assert reason and "\n" not in reason
        if each["status"] == "refused":
            assert reason.endswith(".") and reason[0].isupper() and ". " not in reason


def test_the_stored_table_and_the_registry_agree() -> None:
    """What is verified was written by the command, for what is registered and nothing else."""
    stored = listing.stored_proofs()
    kinds = [kind for family in FAMILIES for kind in family.model_types]
    assert len(set(kinds)) == len(kinds)
    assert set(stored) == set(kinds) == set(zoo.CONFIGS)
    assert not any(proof.failures for proof in stored.values())
    assert not set(stored) & set(REFUSED)
    assert set(REFUSED) | set(stored) >= set(listing.model_types())


@pytest.mark.parametrize("kind", tiered(zoo.CONFIGS, FAST))
def test_the_proofs_hold_today(kind: str) -> None:
    proof = listing.prove_tiny(kind)
    assert proof.failures == []
    stored = listing.stored_proofs()[kind]
    counts = ("sites", "boxes", "placed", "tokens", "refusals")
    assert [getattr(proof, name) for name in counts] == [getattr(stored, name) for name in counts]


def _proof(family: Any) -> list[str]:
    hf = zoo.build("mistral3")
    model = LVLM(hf, None, family)
    return prove(model, partial(rows, model), listing.SIZES).failures


def test_a_wrong_family_is_not_verified() -> None:
    """Each property can fail: a map that is shifted, a block described as another."""
    right = wrap(zoo.build("mistral3")).family

    def shifted(context: Any) -> Any:
        return [replace(each, box=each.box + 12) for each in right.layout(context)]

    assert any("token map" in line for line in _proof(replace(right, layout=shifted)))
    vision, text = right.towers
    wrong = replace(text, block=replace(text.block, mlp_norm="input_layernorm"))
    assert any("self-check" in line for line in _proof(replace(right, towers=(vision, wrong))))
    careless = replace(right, needs=("pixel_values", "image_sizes", "nothing"))
    with pytest.raises(InputError, match="nothing"):
        _proof(careless)


def test_a_failed_or_missing_proof_is_no_verified_model(monkeypatch: pytest.MonkeyPatch) -> None:
    good = listing.stored_proofs()["llava"]
    monkeypatch.setattr(listing, "stored_proofs", lambda: {"llava": replace(good, placed=3)})
    assert listing.architecture("llava").status == "refused"
    assert "3 of 12 boxes" in listing.architecture("llava").reason
    assert "have not run" in listing.architecture("mllama").reason


def test_what_transformers_lacks_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    names = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    older = {kind: name for kind, name in names.items() if kind != "glm4v"}
    monkeypatch.setattr(
        transformers.models.auto.modeling_auto,
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
        older,
    )
    assert "glm4v" not in [each.model_type for each in listing.listing()]
    with pytest.raises(ModelError, match="no tiny model of 'glm4v'"):
        listing.prove_tiny("glm4v")


def test_the_command_stores_what_it_proved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(listing, "model_types", lambda: ["llava", "got_ocr2", "vipllava"])
    out = tmp_path / "table.json"
    assert main(["models", "--check", "--table", str(out)]) == 0
    assert "2 of 2 architectures are verified" in capsys.readouterr().out
    table = json.loads(out.read_text())
    assert table["transformers"] == transformers.__version__
    assert set(table["models"]) == {"llava", "vipllava"}
    assert main(["models", "--table", str(out)]) == 2
    assert "--check alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_checkpoint_is_proved_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.models import processors

    zoo.build("llava").save_pretrained(tmp_path)
    processors.build("llava").save_pretrained(tmp_path)
    assert main(["models", "--check", str(tmp_path)]) == 0
    assert "proved: 60 sites" in capsys.readouterr().out
