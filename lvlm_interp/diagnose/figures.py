"""The figures of a run: from its tables to pdf and png, nothing computed on the way but means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lvlm_interp import plotting
from lvlm_interp.diagnose.items import AGREEING, CONTROL, TRIGGERED, Item
from lvlm_interp.diagnose.report import Picture
from lvlm_interp.diagnose.verdict import ranked_heads
from lvlm_interp.diagnose.words import grids
from lvlm_interp.patching.result import effect_and_gap
from lvlm_interp.results import ResultTable
from lvlm_interp.stats import rate, ratio_of_means

ORDER = (TRIGGERED, AGREEING)


class Gallery:
    """Writes figures into a folder and remembers where.

    Attributes:
        folder: Where pdf and png go.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def _keep(self, figure: Any, name: str, caption: str) -> Picture:
        paths = plotting.save(figure, self.folder / name)
        png = next(path for path in map(Path, paths) if path.suffix == ".png")
        return Picture(png, caption)

    def behaviour(self, table: ResultTable) -> Picture:
        """Error rates of all levels and conditions."""
        frame = table.frame[table.frame["metric"] == "error"]
        rows = []
        for (level, condition), part in frame.groupby(["level", "condition"], sort=False):
            found = rate(part["value"].to_numpy(), part["group"].to_numpy()).to_dict()
            rows.append({"level": level, "condition": condition, **found})
        shown = pd.DataFrame(rows)
        shown["order"] = shown["condition"].map(_rank)
        shown = shown.sort_values(["order"], kind="stable").drop(columns="order")
        return self._keep(
            plotting.behaviour(shown, unit="questions"),
            "behaviour",
            "Share of questions answered wrong, by level and condition; bars are 95% intervals "
            "(scenes are the unit).",
        )

    def probes(self, table: ResultTable, level: str) -> Picture:
        """What probes read along the model."""
        frame = table.frame
        flow = frame[(frame["role"].isin(["flow", "shuffled"])) & (frame["metric"] == ACCURACY)]
        shuffled = "shuffled labels, " + flow["position"].astype(str)
        series = flow["position"].astype(str).where(flow["role"] == "flow", shuffled)
        shown = flow.assign(series=series, estimate=flow["value"]).drop(columns=["value"])
        chance = float(flow["chance"].iloc[0])
        return self._keep(
            plotting.probe_flow(
                shown[["site", "series", "estimate", "low", "high", "n"]],
                chance=chance,
                label="balanced accuracy",
            ),
            f"probes_{level}",
            "Balanced accuracy of linear probes for the truth on held-out scenes, from the vision "
            "tower to the answer; in grey the same with shuffled labels.",
        )

    def words(self, table: ResultTable, item: Item) -> Picture | None:
        """The image with the top word of each patch."""
        words, probs = grids(table)
        image = item.example.open_image()
        if not words or image is None:
            return None
        picture = plotting.lens_grid(image, words, probs, box=item.example.boxes.get("object"))
        return self._keep(
            picture,
            f"lens_{item.level}",
            f"Logit lens: the most probable word at each image token, by layer. The question is "
            f"\u201c{item.example.prompt}\u201d; framed is what the pair edits.",
        )

    def heads(self, table: ResultTable, level: str, kind: str) -> Picture | None:
        """Layers x heads for one kind of pair."""
        frame = table.frame
        rows = frame[(frame["kind"] == kind) & frame["head"].notna() & frame["value"].notna()]
        if rows.empty:
            return None
        shown = recovery(rows, ["layer", "head"])
        marked = ranked_heads(table)[:3]
        return self._keep(
            plotting.head_map(shown, marked=marked, width="half" if len(shown) < 65 else "full"),
            f"heads_{level}_{kind}",
            f"Recovery by head on {kind} pairs (clean into corrupt, all positions). Framed: the "
            "three ranked first on the ranking half's trigger pairs.",
        )

    def positions(self, table: ResultTable, level: str, kind: str) -> Picture | None:
        """Token role x layer of the residual stream."""
        frame = table.frame
        rows = frame[
            (frame["kind"] == kind)
            & frame["site"].str.endswith("resid_pre")
            & frame["value"].notna()
        ]
        if rows.empty:
            return None
        return self._keep(
            plotting.role_map(recovery(rows, ["layer", "position"]), width="half"),
            f"positions_{level}_{kind}",
            f"Recovery by token role and layer of the residual stream on {kind} pairs.",
        )

    def intervention(self, table: ResultTable, level: str) -> Picture:
        """Before, after and random heads, by condition."""
        frame = table.frame
        rows = []
        keys = ["arm", "level", "condition", "draw"]
        for (arm, of, condition, draw), part in frame.groupby(keys, dropna=False, sort=False):
            found = rate(part["value"].to_numpy(), part["group"].to_numpy()).to_dict()
            name = condition if of == level else f"{of}: {condition}"
            rows.append({"stage": arm, "condition": name, "draw": draw, **found})
        shown = pd.DataFrame(rows)
        shown["order"] = shown["condition"].map(_rank)
        shown = shown.sort_values("order", kind="stable").drop(columns="order")
        return self._keep(
            plotting.intervention(shown),
            f"intervention_{level}",
            "Error before and after acting on the chosen heads, on scenes that had no part in the "
            "choice; dots are 20 draws of as many random heads.",
        )


ACCURACY = "balanced_accuracy"


def recovery(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Recovery per component: ratio of means with 95% intervals, scenes resampled."""
    out = []
    for key, part in rows.groupby(by, sort=False):
        effect, gap = effect_and_gap(part)
        found = ratio_of_means(effect.to_numpy(), gap.to_numpy(), part["group"].to_numpy())
        out.append(dict(zip(by, key, strict=True)) | found.to_dict())
    return pd.DataFrame(out)


def _rank(condition: str) -> int:
    if condition in ORDER:
        return ORDER.index(condition)
    return len(ORDER) if condition.startswith(CONTROL) else len(ORDER) + 1
