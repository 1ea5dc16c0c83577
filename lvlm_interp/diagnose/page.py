"""What the report says, put together from summary, tables and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lvlm_interp.diagnose.figures import Gallery
from lvlm_interp.diagnose.items import TRIGGERED, Item
from lvlm_interp.diagnose.phrases import RULES, headline, points, share
from lvlm_interp.diagnose.report import Picture, render
from lvlm_interp.diagnose.verdict import LevelTables
from lvlm_interp.results import ResultTable

READING = (
    "A minimal pair is two images that differ in one edit. Evidence pairs edit what is asked about "
    "and show how the model sees; trigger pairs edit only what misleads it while the truth stays, "
    "and show the flaw. Recovery is how much of the answer comes back when one component's "
    "activation from the clean run is put into the corrupt run: 1 is all of it, 0 nothing. Heads "
    "are written layer.head. Brackets are 95% intervals, scenes resampled as wholes. Heads are "
    "ranked, and the way of acting on them chosen, on one half of the scenes; every figure about "
    "acting on them comes from the other half."
)


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    tables: Mapping[str, LevelTables],
    shown: Mapping[str, tuple[Item, ResultTable]],
    run: Sequence[tuple[str, str]],
) -> Path:
    """Draw the figures and write `report.html`."""
    gallery = Gallery(folder / "figures")
    first = next(iter(tables.values()))
    page = {
        "title": f"What misleads {summary['model']}",
        "subtitle": _subtitle(summary["levels"]),
        "levels": [
            _level(gallery, level, summary["levels"][level], tables[level], *shown[level])
            for level in summary["levels"]
        ],
        "behaviour_text": (
            "Each question has one right answer and one foil; an error is when the model prefers "
            "the foil. Where the trigger is in sight, scenes in which the flaw happens to be right "
            "are shown apart: a model that only says no is not mended."
        ),
        "behaviour_figure": gallery.behaviour(first.behaviour),
        "reading": READING,
        "rules": RULES,
        "run": run,
    }
    return render(folder / "report.html", page)


def _subtitle(levels: Mapping[str, Mapping[str, Any]]) -> str:
    """What was found, what was not shown and what was not tested, level by level."""
    said = []
    for state, text in (
        (True, "A flaw was found at the {} level."),
        (False, "No flaw is shown at the {} level."),
        (None, "Not tested: the {} level."),
    ):
        names = [level for level, entry in levels.items() if entry["found"] is state]
        if names:
            named = " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
            said.append(text.format(named))
    return " ".join(said)


def _level(
    gallery: Gallery,
    level: str,
    entry: Mapping[str, Any],
    tables: LevelTables,
    item: Item,
    words: ResultTable,
) -> dict[str, Any]:
    parts = [
        _lens_part(gallery, item, words),
        _probe_part(gallery, level, entry, tables),
        _heads_part(gallery, level, entry, tables),
        _acting_part(gallery, level, entry, tables),
    ]
    return {
        "name": level,
        "found": entry["found"],
        "headline": headline(entry),
        "verdict": entry["verdict"],
        "question": item.example.prompt,
        "truth": item.truth,
        "foil": item.foil if item.condition == TRIGGERED else None,
        "parts": [part for part in parts if part is not None],
    }


def _part(title: str, text: str, figures: Sequence[Picture | None], **table: Any) -> dict[str, Any]:
    return {"title": title, "text": text, "figures": figures, "columns": [], "rows": [], **table}


def _lens_part(gallery: Gallery, item: Item, words: ResultTable) -> dict[str, Any] | None:
    picture = gallery.words(words, item) if len(words) else None
    if picture is None:
        return None
    return _part(
        "What the image tokens say",
        "The language model's own unembedding, applied to each image token at each layer.",
        [picture],
    )


def _probe_part(
    gallery: Gallery, level: str, entry: Mapping[str, Any], tables: LevelTables
) -> dict[str, Any] | None:
    probe = entry["probe"]
    if probe is None or tables.probes is None:
        return None
    selectivity = probe["selectivity"]
    more = (
        ""
        if selectivity is None
        else (
            f" Against a control task with random labels its selectivity is {points(selectivity)}."
        )
    )
    known = probe.get("known_but_not_said")
    if known is not None:
        more += (
            f" Among the model's wrong answers the probe is right in {share(known)} of "
            f"{known['n']}; always naming their commonest truth would be right in "
            f"{probe['known_base_rate']:.0%}."
        )
    return _part(
        "Where the evidence is",
        f"Site and position were chosen on training folds alone: {probe['site']} at "
        f"{probe['position']}, balanced accuracy {share(probe['accuracy'])} on held-out scenes "
        f"(chance {probe['chance']:.0%}).{more}",
        [gallery.probes(tables.probes, level)],
    )


def _heads_part(
    gallery: Gallery, level: str, entry: Mapping[str, Any], tables: LevelTables
) -> dict[str, Any] | None:
    if tables.patching is None:
        return None
    kinds = ("trigger", "evidence")
    figures = [gallery.heads(tables.patching, level, kind) for kind in kinds]
    figures += [gallery.positions(tables.patching, level, kind) for kind in kinds]
    heads = entry["heads"] or []
    return _part(
        "Which heads carry it",
        "Heads are ranked on one half of the scenes; the recovery beside them is measured on the "
        "other half.",
        figures,
        columns=["head", "recovery on trigger pairs"],
        rows=[[f"{row['layer']}.{row['head']}", share(row["recovery"])] for row in heads[:6]],
    )


def _acting_part(
    gallery: Gallery, level: str, entry: Mapping[str, Any], tables: LevelTables
) -> dict[str, Any] | None:
    acted = entry["intervention"]
    if acted is None or tables.intervention is None:
        return None
    named = ", ".join(f"{layer}.{head}" for layer, head in acted["heads"])
    effect = acted["side_effect"]
    rows = [
        [condition, points(cost)]
        for condition, cost in (effect or {"by_condition": {}})["by_condition"].items()
    ]
    rows += [[name, "not measured"] for name in (effect or {"not_measured": []})["not_measured"]]
    return _part(
        "Acting on them",
        f"Chosen on the ranking half: {named}, {acted['how']}. On the other half the error under "
        f"the trigger goes from {share(acted['before'])} to {share(acted['after'])}; as many "
        f"random heads give {share(acted['random'])}.{_forms(acted['by_form'])} The table shows "
        "what it costs elsewhere.",
        [gallery.intervention(tables.intervention, level)],
        columns=["condition", "change of the error"],
        rows=rows,
    )


def _forms(forms: Mapping[str, Mapping[str, Any]]) -> str:
    if len(forms) < 2:
        return ""
    parts = [f"{name} {share(f['before'])} to {share(f['after'])}" for name, f in forms.items()]
    return f" By form of the question: {'; '.join(parts)}."
