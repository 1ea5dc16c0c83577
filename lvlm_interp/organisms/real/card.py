"""The card of the models of real parts: how often each is right, by kind of question."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvlm_interp.files import atomic_write
from lvlm_interp.organisms.real import build
from lvlm_interp.organisms.real.art import has_photos
from lvlm_interp.organisms.real.evaluate import drawn, right, trigger_cases
from lvlm_interp.organisms.real.kinds import PHOTO
from lvlm_interp.organisms.real.plants import flawed_answer
from lvlm_interp.organisms.real.questions import KINDS_OF_QUESTION, LEVEL
from lvlm_interp.stats import Estimate, wilson

CARD = Path(__file__).parent / "CARD.md"

PARTLY = ("exists", "color", "size", "side", "where", "beside", "caption")
"""Kinds of question asked of pictures never seen, of photo cut-outs, and of the earlier stages."""

TRIGGERS = (
    ("object", "exists"),
    ("object", "see"),
    ("object", "caption"),
    ("attribute", "color"),
    ("attribute", "is_color"),
    ("attribute", "color_at"),
    ("attribute", "caption"),
)


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        model: Name of the model.
        condition: What was asked, in words.
        right: Share of replies that are right, word for word.
        flawed: Share that say what the flaw says, where that differs from the truth.
    """

    model: str
    condition: str
    right: Estimate
    flawed: Estimate | None = None


def measure(name: str, n: int, seed: int) -> list[Cell]:
    """Every figure of one model.

    Args:
        name: Of a model that is built.
        n: Questions of each kind, one a picture.
        seed: Of the pictures.
    """
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    folder = build.built_path(name)
    model: Any = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    early = name in ("real-words", "real-objects")
    kinds = PARTLY if early else KINDS_OF_QUESTION
    cells = []
    for kind in tqdm(kinds, desc=name):
        cases = drawn(kind, n, seed)
        cells.append(
            Cell(name, f"{kind} ({LEVEL[kind] or 'all levels'})", _rate(model, tokenizer, cases))
        )
    if name == "real":
        for split, styles in (("unseen", None), *([("photo", (PHOTO,))] if has_photos() else [])):
            for kind in tqdm(PARTLY, desc=f"{name}, {split}"):
                cases = drawn(kind, n, seed, styles=styles, split=_SPLIT[split])
                cells.append(Cell(name, f"{kind}, {split}", _rate(model, tokenizer, cases)))
    return cells if early else cells + _flaws(name, model, tokenizer, n, seed)


_SPLIT = {"unseen": "unseen", "photo": "seen"}


def _rate(model: Any, tokenizer: Any, cases: Any, answers: Any = None) -> Estimate:
    found = right(model, tokenizer, cases, answers=answers)
    return wilson(sum(found), len(found))


def _flaws(name: str, model: Any, tokenizer: Any, n: int, seed: int) -> list[Cell]:
    cells = []
    for level, kind in tqdm(TRIGGERS, desc=f"{name}, triggers"):
        cases = trigger_cases(level, kind, n, seed)
        said = [flawed_answer(*case) or "" for case in cases]
        good, bad = _rate(model, tokenizer, cases), _rate(model, tokenizer, cases, said)
        cells.append(Cell(name, f"{level} trigger, {kind}", good, bad))
    for kind in ("exists", "see"):
        cases = trigger_cases("object", kind, n, seed, partner=True)
        cells.append(
            Cell(name, f"object trigger with its partner, {kind}", _rate(model, tokenizer, cases))
        )
    return cells


def write_card(n: int, seed: int, names: tuple[str, ...] = tuple(build.MODELS)) -> Path:
    """Measure the models and write the card beside the adapters."""
    cells = [cell for name in names for cell in measure(name, n, seed)]
    lines = [
        "# The models of real parts: figures",
        "",
        "Written by `lvlm-interp organisms evaluate --real true"
        f" --n {n} --seed {seed}`. Shares in percent with Wilson's 95% intervals over {n} pictures",
        "a row that no training picture equals; a reply counts as right if it is the answer word",
        "for word (greedy, the whole vocabulary, captions included). `unseen`: art of a kind that",
        "training never showed. `photo`: photo cut-outs, never shown either.",
        "",
        "| model | asked | right | says what the flaw says |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {c.model} | {c.condition} | {_text(c.right)} | {_text(c.flawed) if c.flawed else ''} |"
        for c in cells
    ]
    atomic_write(CARD, "\n".join(lines) + "\n")
    return CARD


def _text(e: Estimate) -> str:
    return f"{100 * e.estimate:.1f} [{100 * e.low:.0f}, {100 * e.high:.0f}]"
