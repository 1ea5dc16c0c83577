"""What a study asks, of whom, and what would count as an answer: read from a file and checked.

All of it is checked (keys, kinds of values, sites, labels, positions, conditions, and whether the
examples can support the label at all) before a model is loaded.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from lvlm_interp.activations.forward import OWN_COLUMNS, Chunk
from lvlm_interp.activations.memory import Collected
from lvlm_interp.activations.roles import check_sites, parse_roles
from lvlm_interp.data.examples import Example
from lvlm_interp.errors import UsageError
from lvlm_interp.models.skeleton import files_hash, skeleton
from lvlm_interp.probing.design import (
    CONTROLS,
    PIXELS,
    SHUFFLED,
    TYPES,
    UNTRAINED,
    design_of,
)
from lvlm_interp.probing.fitting import PROBES
from lvlm_interp.probing.where import mask_of
from lvlm_interp.sites import select

__all__ = ["Study", "load_study"]

_BEATEN = (SHUFFLED, UNTRAINED, PIXELS)
"""Controls that have a score of their own, to be above of."""

_METHOD = 2
"""Raised whenever the same study would give other figures, so that old results are done again."""

_SAID = {"said": "", "wrong": False, "margin": 0.0, "n_tokens": 0}
"""Columns that the model fills, and what stands for them before it has run."""


@dataclass(frozen=True)
class Study:
    """What is asked, of whom, and what would count as an answer.

    Attributes:
        name: Of its folder of results.
        question: In one sentence.
        control: What rules out the trivial explanations, in words.
        answer: What would count as an answer, in words.
        above: Yes if the whole interval of the balanced accuracy lies above this, no if it lies
            below, else not shown.
        data: A source of examples.
        label: Column to predict.
        models: Names, folders or hub ids.
        sites: Where to look.
        positions: Likewise.
        answer_sites: Among which sites the answer is sought; all by default.
        answer_positions: Likewise for positions.
        beyond: Controls that the answer must also beat: yes only if its whole interval lies above
            theirs.
        where: Which examples take part.
        group: As in `sweep`; so are `control_type`, `heads`, `probe`, `controls`, `folds`, `seed`.
        known: Also ask what the probes know where the model errs.
        known_label: The truth that `known` is about, where `label` is something else.
        known_where: Which examples `known` is about; as `where` by default.
    """

    name: str
    question: str
    control: str
    answer: str
    above: float
    data: str
    label: str
    models: tuple[str, ...] = ("scenes", "scenes-balanced")
    sites: tuple[str, ...] = ("vision.*.resid_post", "projector.out", "text.*.resid_post")
    positions: tuple[str, ...] = ("object", "last")
    answer_sites: str = "*"
    answer_positions: tuple[str, ...] = ()
    beyond: tuple[str, ...] = ()
    where: str | None = None
    group: str = "group"
    control_type: str = "type"
    heads: bool = False
    probe: str = "logistic"
    controls: tuple[str, ...] = CONTROLS
    known: bool = False
    known_label: str | None = None
    known_where: str | None = None
    folds: int = 5
    shuffles: int = 5
    seed: int = 0

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse what cannot be run, before a model is loaded.

        Raises:
            UsageError: An unknown label, group, control, probe or position; a condition that is
                none; a label that the examples cannot support.
            SiteError: A model has no such site.
        """
        labels = {name for example in examples for name in example.labels} | set(OWN_COLUMNS)
        _known("label", self.label, sorted(labels))
        _known("group", self.group, sorted(labels))
        if self.known_label is not None:
            _known("label", self.known_label, sorted(labels))
        if TYPES in self.controls:
            _known("control_type", self.control_type, sorted(labels))
        for control in self.controls:
            _known("control", control, CONTROLS)
        for control in self.beyond:
            possible = [name for name in self.controls if name in _BEATEN]
            _known("control to be beyond of", control, possible)
        _known("probe", self.probe, list(PROBES))
        roles = parse_roles(self.positions)
        for name in self.answer_positions:
            _known("answer position", name, [role.name for role in roles])
        self._check_design(examples)
        for name in self.models:
            found = skeleton(name).sites(self.sites)
            check_sites(found, roles)
            select(self.answer_sites, found)

    def _check_design(self, examples: Sequence[Example]) -> None:
        """Whether the examples can support the labels, as far as no model is needed to know."""
        rows = [
            {"example": e.id, "group": e.group, "level": e.level, "prompt": e.prompt}
            | {"answer": e.answer, "foil": e.foil, **_SAID, **e.labels}
            for e in examples
        ]
        data = Collected([], (), {}, [Chunk({}, {}, {}, rows, [])])
        asked = [(self.label, self.where)]
        if self.known:
            asked.append((self.known_label or self.label, self.known_where or self.where))
        for label, where in asked:
            mask_of(data.labels, where)
            # What the model will say is not known yet.
            if label not in _SAID and not any(name in (where or "") for name in _SAID):
                design_of(
                    data,
                    label=label,
                    group=self.group,
                    where=where,
                    control_type=self.control_type,
                    controls=tuple(each for each in self.controls if each == TYPES),
                    n_folds=self.folds,
                    n_shuffles=self.shuffles,
                    seed=self.seed,
                )

    def store_key(self, model: str, data: str) -> str:
        """Changes when other activations are needed."""
        text = json.dumps([self.sites, self.positions, files_hash(model), data])
        return sha256(text.encode()).hexdigest()[:16]

    def key(self, model: str, data: str) -> str:
        """Changes when anything that decides the result changes."""
        deciding = asdict(self)
        for words in ("question", "control", "answer", "models"):
            deciding.pop(words)
        text = json.dumps([_METHOD, deciding, files_hash(model), data], sort_keys=True)
        return sha256(text.encode()).hexdigest()


def load_study(path: Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study and set some of its keys anew.

    Raises:
        UsageError: No such file, a key that is unknown or missing, or a value of the wrong kind.
    """
    if not path.is_file():
        raise UsageError(f"There is no study file {path}.")
    try:
        found = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise UsageError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: expected keys and values, got {type(found).__name__}.")
    values = {"name": path.stem, **found, **(overrides or {})}
    known, kinds = {each.name: each for each in fields(Study)}, get_type_hints(Study)
    for name, value in values.items():
        _known(f"key of {path.name}", name, list(known))
        if value is not None:
            values[name] = _typed(path, name, value, kinds[name])
        elif known[name].default not in (MISSING, None):
            raise UsageError(f"{path}: {name!r} has no value; give one, or leave the key out.")
    for name, each in known.items():
        if each.default is MISSING and values.get(name) is None:
            raise UsageError(f"{path}: the key {name!r} is missing; a study needs it.")
    return Study(**values)


def _known(what: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        raise UsageError(f"There is no {what} {name!r}; {hint}")


def _typed(path: Path, name: str, value: Any, kind: Any) -> Any:
    """A value of the kind that a key has; one name stands for a list of it."""
    if getattr(kind, "__origin__", None) is tuple:
        found = [value] if isinstance(value, str) else value
        if isinstance(found, list | tuple) and all(isinstance(each, str) for each in found):
            return tuple(found)
        raise UsageError(f"{path}: {name!r} is a list of names, got {value!r}.")
    wanted = next((each for each in get_args(kind) if each is not type(None)), kind)
    right = isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not right:
        raise UsageError(f"{path}: {name!r} is of kind {wanted.__name__}, got {value!r}.")
    return value
