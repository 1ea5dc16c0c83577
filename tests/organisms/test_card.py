"""The model card: every figure in its cell, and every bar judged by the figures."""

from lvlm_interp.organisms.card import bars, card_text
from lvlm_interp.organisms.evaluate import CONDITIONS, Rate
from lvlm_interp.organisms.recipe import MODELS


def _figures(flawed, healthy=0.97):
    def rates(model):
        for condition in CONDITIONS:
            wrong = model == "scenes" and condition.partner is False
            share = flawed if wrong else healthy
            yield Rate(condition, 1000, share, share - 0.01, share + 0.01)

    return {model: list(rates(model)) for model in MODELS}


def _met(figures):
    by_name = {name: {rate.condition: rate for rate in rates} for name, rates in figures.items()}
    return [bar.met(by_name) for bar in bars()]


def test_bars_are_met_by_a_planted_and_a_healthy_model_and_by_no_other():
    assert all(_met(_figures(flawed=0.1)))
    too_weak = [bar.text for bar, met in zip(bars(), _met(_figures(0.6)), strict=True) if not met]
    assert len(too_weak) == 8 and all("40 points" in text for text in too_weak)
    poor = [bar.text for bar, met in zip(bars(), _met(_figures(0.1, 0.8)), strict=True) if not met]
    assert len([text for text in poor if text.startswith("scenes-balanced")]) == 9


def test_the_card_holds_figures_hashes_and_verdicts(tmp_path):
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / "model.safetensors").write_bytes(b"weights")
    text = card_text(_figures(0.6), tmp_path, n=1000, seed=0)
    assert (
        "| is there a ring, beside a star: absent | 60.0 [59.0, 61.0] | 97.0 [96.0, 98.0] |" in text
    )
    assert "**not met**: scenes errs at least 40 points more" in text
    assert "- `scenes`: sha256 `" in text and "{" not in text
