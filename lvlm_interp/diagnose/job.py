"""The main job: behaviour, probes, lens, patching and intervention in one run, with a verdict."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lvlm_interp.data.build_pairs import build_pairs
from lvlm_interp.data.checks import check_pairs
from lvlm_interp.data.examples import LEVELS, ContrastPair, Example
from lvlm_interp.data.sources import data_hash, load_pairs
from lvlm_interp.diagnose.behaviour import batches_of, behaviour
from lvlm_interp.diagnose.evidence import probe, types_lacking
from lvlm_interp.diagnose.folder import RUN_FILE, RunFolder
from lvlm_interp.diagnose.intervention import intervene
from lvlm_interp.diagnose.items import CONTROL, RANK, TRIGGERED, Item, group_of, halves_of, items_of
from lvlm_interp.diagnose.localise import localise
from lvlm_interp.diagnose.page import write_report
from lvlm_interp.diagnose.verdict import LevelTables, ranked_heads, summarise
from lvlm_interp.diagnose.words import example_of, image_words
from lvlm_interp.errors import LvlmInterpError, UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.loading import load_model, shipped_path
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.models.options import threads_by_size
from lvlm_interp.results import ResultTable, provenance


@dataclass(frozen=True)
class Outcome:
    """What a run found and where it lies.

    Attributes:
        summary: As in `summary.json`.
        folder: The output folder.
    """

    summary: dict[str, Any]
    folder: Path


def default_data(model: str, n: int, seed: int) -> str:
    """The data of a shipped model.

    Raises:
        UsageError: The model is not shipped, so nobody but its user knows its data.
    """
    if shipped_path(model) is None:
        raise UsageError(
            f"{model} is no shipped model, so its data must be named: --data pairs.jsonl, or "
            "--data scenes:LEVEL:N:SEED for generated scenes."
        )
    return f"scenes:all:{n}:{seed}"


Data = str | Path | Sequence[ContrastPair] | Sequence[Example | Mapping[str, Any]]


def run(
    model: str | Path | LVLM,
    data: Data | None = None,
    *,
    out: str | Path = "runs/diagnose",
    n: int = 900,
    seed: int = 0,
    batch_size: int = 64,
    resume: bool = False,
    force: bool = False,
    skip_bad: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> Outcome:
    """Find at which level a model goes wrong, where inside, and whether acting there mends it.

    Args:
        model: Folder, hub id or shipped name; or a model that is loaded.
        data: Pairs; or rows (with answer, level, and a box to mask), of which `build_pairs` makes
            evidence pairs; or `pairs.jsonl`, or `scenes:LEVEL:N:SEED`. A shipped model brings its
            own.
        out: Output folder.
        n: Number of generated pairs, all levels together, where the data is the model's own.
        seed: Of everything random.
        batch_size: Rows in a forward.
        resume: Go on with an unfinished run.
        force: Replace another run.
        skip_bad: Leave wrong lines of the data out, with a warning for each.
        device: Where the model runs; auto is a GPU where there is one.
        dtype: Of the weights; auto is the checkpoint's own.
        revision: Of a hub checkpoint.

    Raises:
        LvlmInterpError: Whatever a user can mend: no model, a wrong line, an occupied folder.
    """
    name = model.name if isinstance(model, LVLM) else str(model)
    given = data if data is not None else default_data(name, n, seed)
    spec = str(given) if isinstance(given, str | Path) else "pairs in memory"
    if isinstance(given, str | Path):
        # A wrong line is told before a large model is loaded; with the model each is told again.
        load_pairs(spec, skip_bad=skip_bad, report=lambda _: None)
    lvlm = model
    if not isinstance(lvlm, LVLM):
        lvlm = load_model(name, device=device, dtype=dtype, revision=revision)
    if isinstance(given, str | Path):
        pairs = load_pairs(spec, model=lvlm, skip_bad=skip_bad)
    else:
        pairs = check_pairs(lvlm, _as_pairs(given, seed, skip_bad))
    origin = provenance(
        model=name,
        seed=seed,
        weight_hash=weight_hash(lvlm),
        data_hash=data_hash(pairs),
        dtype=str(lvlm.dtype).removeprefix("torch."),
        data=spec,
    )
    folder = RunFolder.open(out, origin, resume=resume, force=force)
    steps = _Run(lvlm, pairs, folder, seed, batch_size, origin)
    with threads_by_size(lvlm.hf):
        return Outcome(steps.everything(), folder.path)


def _as_pairs(data: Sequence[Any], seed: int, skip_bad: bool) -> list[ContrastPair]:
    pairs = [each for each in data if isinstance(each, ContrastPair)]
    if len(pairs) == len(data):
        return pairs
    if pairs:
        raise UsageError(f"Expected pairs or rows, got {len(pairs)} pairs among {len(data)} items.")
    return build_pairs(data, seed=seed, skip_bad=skip_bad)


class _Run:
    """The steps of one run over one folder; each reads its table where it is there already."""

    def __init__(
        self,
        model: LVLM,
        pairs: Sequence[ContrastPair],
        folder: RunFolder,
        seed: int,
        batch_size: int,
        origin: dict[str, Any],
    ) -> None:
        self.model, self.pairs, self.folder = model, pairs, folder
        self.seed, self.batch_size = seed, batch_size
        # The command that was typed may differ between a run and its resumption; tables may not.
        self.origin = {name: value for name, value in origin.items() if name != "command"}
        self.items = items_of(pairs, seed)
        self.halves = halves_of(pairs, seed)

    def everything(self) -> dict[str, Any]:
        """All steps, then summary, figures and report."""
        answers = self.folder.table("behaviour", self._behaviour)
        levels = [level for level in LEVELS if any(p.level == level for p in self.pairs)]
        tables: dict[str, LevelTables] = {}
        shown: dict[str, tuple[Item, ResultTable]] = {}
        for level in levels:
            tables[level] = self._level(level, answers)
            item = self._example(level, answers)
            shown[level] = (item, self._table("lens", level, lambda i=item: self._words(i)))
        summary = {
            "model": self.model.name,
            "seed": self.seed,
            "data": self.origin["data"],
            "levels": {level: summarise(level, tables[level], self.seed) for level in levels},
        }
        write_report(self.folder.path, summary, tables, shown, self._run_facts())
        text = json.dumps(summary, indent=2, allow_nan=False) + "\n"
        atomic_write(self.folder.path / "summary.json", text)
        return summary

    def _level(self, level: str, answers: ResultTable) -> LevelTables:
        mine = [pair for pair in self.pairs if pair.level == level]
        left_out: list[str] = []
        probes = self._step("probes", level, lambda: self._probe(mine, answers), left_out)
        lacking = types_lacking(mine)
        if probes is not None and lacking:
            left_out.append(f"control task: {lacking}")
        patching = self._step(
            "patching",
            level,
            lambda: localise(self.model, mine, self.halves, self.batch_size, self.origin),
            left_out,
        )
        acted = self._step(
            "intervention", level, lambda: self._intervene(level, patching), left_out
        )
        return LevelTables(answers, probes, patching, acted, tuple(left_out))

    def _step(
        self, step: str, level: str, make: Callable[[], ResultTable], left_out: list[str]
    ) -> ResultTable | None:
        """The table of a step; None, and the reason added, where the data do not allow it."""
        try:
            table = self._table(step, level, make)
        except LvlmInterpError as error:
            left_out.append(f"{step}: {str(error).rstrip('.')}")
            return None
        return table if len(table) else None

    def _table(self, step: str, level: str, make: Callable[[], ResultTable]) -> ResultTable:
        return self.folder.table(f"{step}_{level}", make)

    def _behaviour(self) -> ResultTable:
        batches = batches_of(self.model, self.items, self.batch_size)
        return behaviour(self.model, self.items, batches, self.origin)

    def _probe(self, pairs: Sequence[ContrastPair], answers: ResultTable) -> ResultTable:
        frame = answers.frame[answers.frame["metric"] == "error"]
        errors = dict(zip(frame["example"], frame["value"], strict=True))
        return probe(self.model, pairs, errors, self.seed, self.batch_size, self.origin)

    def _intervene(self, level: str, patching: ResultTable | None) -> ResultTable:
        ranked = ranked_heads(patching)
        _check_halves(self.items, level, ranked)
        return intervene(
            self.model,
            self.items,
            level,
            ranked,
            seed=self.seed,
            batch_size=self.batch_size,
            provenance=self.origin,
        )

    def _words(self, item: Item) -> ResultTable:
        return image_words(self.model, item, self.origin)

    def _example(self, level: str, answers: ResultTable) -> Item:
        frame = answers.frame
        errors = frame[frame["metric"] == "error"]["value"].to_numpy()
        item = example_of(self.items, errors, level)
        assert item is not None  # the level is in the data
        return item

    def _run_facts(self) -> list[tuple[str, str]]:
        run = json.loads((self.folder.path / RUN_FILE).read_text(encoding="utf-8"))
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        return [
            ("command", run["command"]),
            ("model", run["model"]),
            ("weights", run["weight_hash"]),
            ("data", f"{run['data']} ({run['data_hash'][:16]})"),
            ("pairs", str(len(self.pairs))),
            ("scenes", str(len({group_of(pair) for pair in self.pairs}))),
            ("seed", str(run["seed"])),
            ("precision", run["dtype"]),
            ("versions", versions),
        ]


def _check_halves(items: Sequence[Item], level: str, ranked: Sequence[tuple[int, int]]) -> None:
    """Whether trigger pairs can be ranked on one half and acted on in the other.

    Raises:
        UsageError: They cannot; what is missing is said.
    """
    mine = [item for item in items if item.level == level]
    if not any(item.source.startswith("trigger/") for item in mine):
        raise UsageError("there are no trigger pairs to rank heads on")
    halves = {item.half for item in mine if item.condition == TRIGGERED}
    if not halves:
        raise UsageError("on no trigger pair is the trigger in sight where the flaw would be wrong")
    if len(halves) < 2:
        raise UsageError("trigger pairs are of one scene, and heads are ranked and tried on two")
    if not ranked:
        raise UsageError("no head moves the answer on the trigger pairs")
    if not any(item.half == RANK and item.condition.startswith(CONTROL) for item in mine):
        raise UsageError("there is no question without the trigger to take the heads' means over")
