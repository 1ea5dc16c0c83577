"""The table behind each baseline picture, and the figure it gives.

`python tests/plotting/pictures.py` draws the baselines anew; look at them before committing.
"""

from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
from PIL import Image

from lvlm_interp import plotting
from lvlm_interp.plotting.style import to_png

BASELINE = Path(__file__).parent / "baseline"
SITES = [f"vision.{i}.resid_post" for i in range(3)] + ["projector.out"]
SITES += [f"text.{i}.resid_post" for i in range(4)]
ROLES = ["object", "other_image", "question", "last"]
CONDITIONS = [
    "trigger, partner absent",
    "trigger, partner present",
    "no trigger",
    "other questions",
]


def estimates(rows, n=200, half=0.05):
    frame = pd.DataFrame(rows)
    return frame.assign(low=frame["estimate"] - half, high=frame["estimate"] + half, n=n)


def heads():
    rng = np.random.default_rng(0)
    return estimates(
        [
            {"layer": layer, "head": head, "estimate": 0.2 * rng.normal()}
            for layer in range(4)
            for head in range(8)
        ]
    )


def roles():
    rng = np.random.default_rng(1)
    return estimates(
        [
            {"layer": layer, "position": role, "estimate": float(np.tanh(rng.normal()))}
            for role in ROLES
            for layer in range(4)
        ]
    )


def flow():
    rows = [
        {"site": site, "series": series, "estimate": 0.5 + gain * i}
        for series, gain in (("object", 0.06), ("last", 0.03), ("shuffled labels", 0.001))
        for i, site in enumerate(SITES)
    ]
    rows.append({"site": "answer", "series": "the model's answer", "estimate": 0.56})
    return estimates(rows, n=1000, half=0.03)


def before_after():
    rng = np.random.default_rng(2)
    rows = []
    for level in ("object", "attribute", "relation"):
        for condition in CONDITIONS:
            place = {"level": level, "condition": condition, "n": 200}
            rows.append({**place, "stage": "before", "estimate": 0.9, "low": 0.85, "high": 0.93})
            rows.append({**place, "stage": "after", "estimate": 0.2, "low": 0.15, "high": 0.26})
            rows += [
                {**place, "stage": "random", "draw": i, "estimate": 0.85 + 0.03 * rng.normal()}
                for i in range(20)
            ]
    return pd.DataFrame(rows)


def errors():
    rng = np.random.default_rng(3)
    return estimates(
        [
            {
                "level": level,
                "condition": condition,
                "model": model,
                "estimate": rng.uniform(0.1, 0.9),
            }
            for level in ("object", "attribute", "relation")
            for condition in ("trigger", "no trigger")
            for model in ("scenes", "scenes-balanced")
        ],
        n=1000,
    )


def scene():
    image = Image.new("RGB", (48, 48), (240, 240, 240))
    image.paste((200, 20, 20), (6, 6, 20, 20))
    return image


def words():
    rng = np.random.default_rng(4)
    vocabulary = np.array(["red", "circle", "bottomright", "ring", "$x_1$"], dtype=object)
    return (
        {layer: vocabulary[rng.integers(0, 5, (6, 6))] for layer in range(4)},
        {layer: rng.random((6, 6)) for layer in range(4)},
    )


def graph():
    made = nx.DiGraph()
    made.add_node("input", layer=-1, kind="input")
    made.add_node("logits", layer=4, kind="output")
    made.add_node("mlp 1", layer=1, kind="mlp")
    for layer, head in [(0, 1), (0, 5), (1, 2), (2, 0), (2, 3), (3, 7)]:
        made.add_node(f"{layer}.{head}", layer=layer, kind="head", label=f"head {layer}.{head}")
    edges = [("input", "0.1", 0.5), ("input", "0.5", 0.2), ("0.1", "1.2", 0.4)]
    edges += [("0.5", "mlp 1", -0.3), ("mlp 1", "2.0", 0.1), ("1.2", "2.3", 0.9)]
    edges += [("2.3", "3.7", 0.6), ("2.0", "3.7", -0.5), ("3.7", "logits", 1.2)]
    made.add_weighted_edges_from(edges)
    return made


FIGURES = {
    "head_map": lambda: plotting.head_map(heads(), marked=[(2, 3), (1, 0)]),
    "role_map": lambda: plotting.role_map(roles()),
    "layer_curve": lambda: plotting.layer_curve(
        roles(), hue="position", label="recovery", baseline=0, baseline_label="none", unit="pairs"
    ),
    "probe_flow": lambda: plotting.probe_flow(flow()),
    "intervention": lambda: plotting.intervention(before_after()),
    "behaviour": lambda: plotting.behaviour(errors()),
    "overlay": lambda: plotting.overlay(
        scene(),
        np.linspace(0, 1, 36).reshape(6, 6),
        label="probability of 'ring'",
        box=(6, 6, 20, 20),
        title="layer 2",
    ),
    "lens_grid": lambda: plotting.lens_grid(scene(), *words(), box=(6, 6, 20, 20)),
    "forest": lambda: plotting.forest(
        errors().query("model == 'scenes'"), rows="level", panels="condition", reference=0.5
    ),
    "circuit": lambda: plotting.circuit(graph(), title="head edges"),
}

if __name__ == "__main__":
    for name, draw in FIGURES.items():
        (BASELINE / f"{name}.png").write_bytes(to_png(draw(), dpi=100))
