"""Word vectors from a text file, with spaCy's similarity of two words."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from lvlm_interp.data.benchmarks.records import read_json
from lvlm_interp.errors import DataError

__all__ = ["Vectors"]


class Vectors:
    """Vectors of some words.

    A phrase has the mean of its words' vectors, and a word that the file lacks has none, so that
    its similarity is 0 to everything but itself: as spaCy has it.
    """

    def __init__(self, vectors: dict[str, np.ndarray]) -> None:
        self.vectors = vectors

    @classmethod
    def read(cls, path: str | Path, words: Iterable[str]) -> Vectors:
        """The vectors of some words from a file in word2vec's or GloVe's text form, or from JSON.

        Args:
            path: Lines of a word and its numbers, blanks between; a first line of two numbers is
                passed over; may be gzipped. Or `.json`: an object of words and lists of numbers.
            words: Which to keep; phrases stand for their words.

        Raises:
            DataError: No such file, or a line whose numbers are none or of another length.
        """
        path = Path(path)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file of word vectors.")
        wanted = {part for word in words for part in word.split()}
        if path.suffix == ".json":
            return cls(_from_json(path, wanted))
        found: dict[str, np.ndarray] = {}
        opener = gzip.open if path.suffix == ".gz" else open
        size = None
        with opener(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip("\n").split(" ")
                if number == 1 and len(parts) == 2:
                    continue
                if parts[0] not in wanted:
                    continue
                try:
                    vector = np.array([float(each) for each in parts[1:] if each], np.float32)
                except ValueError as error:
                    raise DataError(
                        f"{path}, line {number}: expected numbers ({error})."
                    ) from error
                if size not in (None, len(vector)) or not len(vector):
                    raise DataError(f"{path}, line {number}: {len(vector)} numbers, not {size}.")
                size = len(vector)
                found[parts[0]] = vector
        if not found:
            raise DataError(f"{path}: it has a vector for none of the {len(wanted)} words needed.")
        return cls(found)

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two words; 1 where they are the same word, 0 where one has no vector."""
        if first == second:
            return 1.0
        one, two = self._vector(first), self._vector(second)
        norms = np.linalg.norm(one) * np.linalg.norm(two)
        return 0.0 if norms == 0 else float(np.dot(one, two) / norms)

    def _vector(self, word: str) -> np.ndarray:
        size = len(next(iter(self.vectors.values())))
        parts = [self.vectors.get(each, np.zeros(size, np.float32)) for each in word.split()]
        return np.mean(parts, axis=0)


def _from_json(path: Path, wanted: set[str]) -> dict[str, np.ndarray]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object of words and lists of numbers.")
    try:
        kept = {word: np.array(v, np.float32) for word, v in content.items() if word in wanted}
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: expected lists of numbers ({error}).") from error
    if not kept or len({each.shape for each in kept.values()}) > 1:
        raise DataError(f"{path}: expected vectors of one length, for some of the words needed.")
    return kept
