"""What pairs must fulfil for one model: first tokens that differ, and positions that align."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lvlm_interp.data.examples import ContrastPair, Example
from lvlm_interp.data.lines import Report
from lvlm_interp.errors import DataError, InputError
from lvlm_interp.models.inputs.images import image_size

if TYPE_CHECKING:
    from lvlm_interp.models.lvlm import LVLM

__all__ = ["check_pairs"]


def check_pairs(
    model: LVLM,
    pairs: Sequence[ContrastPair],
    *,
    origins: Sequence[str] | None = None,
    report: Report | None = None,
) -> list[ContrastPair]:
    """The pairs that one model can be run on.

    Args:
        model: Whose tokenizer and processor decide.
        pairs: To check.
        origins: What to call each pair in an error (path and line); its id by default.
        report: Gets the error of a pair that does not fit, which is then left out; None raises it.

    Raises:
        DataError: Answer and foil begin with the same token, the tokenizer does not know one of
            them, or clean and corrupt side have different numbers of tokens.
    """
    kept = []
    lengths: dict[object, int] = {}
    for pair, where in zip(pairs, origins or [pair.id for pair in pairs], strict=True):
        try:
            _check_answers(model, pair, where)
            _check_lengths(model, pair, where, lengths)
        except DataError as error:
            if report is None:
                raise
            report(error)
            continue
        kept.append(pair)
    return kept


def _check_answers(model: LVLM, pair: ContrastPair, where: str) -> None:
    ids = {}
    for field, word in (("answer", pair.answer), ("foil", pair.foil)):
        try:
            ids[field] = id_in_reply(model, word, pair.clean.reply)
        except InputError as error:
            raise DataError(
                f"{where}, field {field!r}: {error} Use a word that is in its vocabulary."
            ) from error
    if ids["answer"] == ids["foil"]:
        raise DataError(
            f"{where}, field 'foil': {pair.answer!r} and {pair.foil!r} begin with the same token, "
            "so the first token of the reply cannot tell them apart; choose others."
        )


def id_in_reply(model: LVLM, word: str, reply: str) -> int:
    """Id of a word's first token at its place in the reply."""
    return model.answer_id(word, reply) if reply else model.answer_id(word)


def _check_lengths(model: LVLM, pair: ContrastPair, where: str, lengths: dict[object, int]) -> None:
    clean, corrupt = (_length(model, side, lengths) for side in (pair.clean, pair.corrupt))
    if clean != corrupt:
        fields = "'corrupt_prompt'" if pair.clean.prompt != pair.corrupt.prompt else "'corrupt'"
        raise DataError(
            f"{where}, field {fields}: the clean side has {clean} tokens and the corrupt side "
            f"{corrupt}, so positions do not align; use images of one size and prompts "
            "of one length."
        )


def _length(model: LVLM, example: Example, known: dict[object, int]) -> int:
    """Tokens of one example; it depends on the prompt and the image's size alone."""
    sizes = tuple(image_size(image) for image in example.images)
    key = (sizes, example.prompt, example.reply)
    if key not in known:
        known[key] = len(model.prepare(example).tokens[0].real)
    return known[key]
