"""What results show in Jupyter: a figure and a small table."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from lvlm_interp.alignment import Profile, Trajectory
from lvlm_interp.circuits import (
    AgainstRandom,
    CircuitCurve,
    EdgeScores,
    NodeScores,
    select_circuit,
)
from lvlm_interp.displays import register_display
from lvlm_interp.lens import (
    Confidence,
    LensResult,
    Localisation,
    PatchscopeResult,
    SpokenAttention,
    TokenAblation,
    TokenScores,
    TunedLensFit,
)
from lvlm_interp.patching import DirectResult, KnockoutResult, PatchResult
from lvlm_interp.plotting.alignment import alignment_map, trajectory
from lvlm_interp.plotting.bars import forest
from lvlm_interp.plotting.curves import layer_curve, probe_flow
from lvlm_interp.plotting.graphs import circuit
from lvlm_interp.plotting.heat import head_map, role_map
from lvlm_interp.plotting.images import lens_grid, overlay
from lvlm_interp.plotting.spoken import spoken
from lvlm_interp.plotting.style import to_png
from lvlm_interp.probing import CausalEffect, CrossTest, KnownNotSaid, ProbeSweep
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.stats import Estimate

_PANELS = 4
_ROWS = 8
_EDGES = 40


def register() -> None:
    """Tell `results` how each type shows itself; calling it again changes nothing."""
    for kind, function in (
        (LensResult, show_lens),
        (TokenScores, show_scores),
        (SpokenAttention, show_spoken),
        (Localisation, show_localisation),
        (Confidence, show_confidence),
        (TokenAblation, show_token_ablation),
        (TunedLensFit, show_tuned_lens_fit),
        (PatchscopeResult, show_patchscope),
        (PatchResult, show_patching),
        (KnockoutResult, show_knockout),
        (ProbeSweep, show_sweep),
        (CircuitCurve, show_curve),
        (AgainstRandom, show_against_random),
        (EdgeScores, show_edges),
        (NodeScores, show_nodes),
        (DirectResult, show_direct),
        (KnownNotSaid, show_known),
        (CrossTest, show_cross_test),
        (CausalEffect, show_causal_effect),
        (Profile, show_profile),
        (Trajectory, show_trajectory),
    ):
        register_display(kind, function)


def show_lens(result: LensResult) -> str:
    """The top words over the image at a few layers; where they have no place, entropy by layer."""
    over_image = _on_grid(result, 0) and _image(result.images, 0) is not None
    caption = "Top word of each image token, by layer" if over_image else "Entropy, by layer"
    return _shown(result, lens_figure, caption)


def lens_figure(result: LensResult, row: int = 0) -> Figure:
    """Words over the image of one row, at up to four layers spread from first to last."""
    image = _image(result.images, row)
    if not _on_grid(result, row):
        image = None
    if image is None or any(head is not None for head in result.heads):
        entropy = result.table.select(metric="entropy")
        return layer_curve(entropy, label="entropy (nats)", unit="tokens")
    layers = result.layers
    step = max(1, -(-(len(layers) - 1) // (_PANELS - 1))) if len(layers) > 1 else 1
    picked = sorted({*layers[::step], layers[-1]})
    grids = {layer: result.word_grid(layer, row=row) for layer in picked}
    return lens_grid(
        image,
        {layer: words for layer, (words, _) in grids.items()},
        {layer: probs for layer, (_, probs) in grids.items()},
    )


def show_scores(result: TokenScores) -> str:
    """Scores of the first row over its image, the mean over layers and heads."""
    image = _image(result.images, 0)
    if image is None or not _on_grid(result, 0):
        return result.table._repr_html_()
    name = type(result).__name__
    return _shown(result, lambda each: overlay(image, each.grid(), label=name.lower()), name)


def show_spoken(result: SpokenAttention) -> str:
    """Attention of each generated token of the first row over its image."""
    if _image(result.images, 0) is None or not result.words[0] or not _on_grid(result, 0):
        return result.table._repr_html_()
    return _shown(result, spoken, "Attention of each generated token")


def show_localisation(result: Localisation) -> str:
    """Scores by method, with chance."""
    summary = result.summary()
    caption = "How well the word's heat finds the object"
    return _shown(result, lambda _: forest(summary), caption, summary)


def show_confidence(result: Confidence) -> str:
    """Internal confidence and output probability, their means."""
    summary = result.table.mean(["metric"], cluster="group")
    drawn = summary.assign(panel="probability")
    return _shown(
        result, lambda _: forest(drawn, rows="metric", panels="panel"), "Mean by score", summary
    )


def show_token_ablation(result: TokenAblation) -> str:
    """What ablating each group of tokens leaves of the answer."""
    summary = result.table.mean(["position", "metric"], cluster="group")
    return _shown(
        result,
        lambda _: forest(summary, rows="position"),
        "The answer without some image tokens",
        summary,
    )


def show_tuned_lens_fit(result: TunedLensFit) -> str:
    """Held-out KL by layer, tuned against logit lens."""
    summary = result.table.mean(["layer", "metric"])
    return _shown(
        result,
        lambda _: layer_curve(summary, hue="metric", label="KL to the model (nats)"),
        "Held-out KL of both lenses",
        summary,
    )


def show_patchscope(result: PatchscopeResult) -> str:
    """What was said most often at each layer."""
    rows = [
        {"layer": layer, "said": pd.Series(texts).value_counts().index[0], "tokens": len(texts)}
        for layer, texts in zip(result.layers, result.texts, strict=True)
    ]
    return pd.DataFrame(rows).to_html(index=False, border=0) + result.table._repr_html_()


def show_patching(result: PatchResult) -> str:
    """Heads as a map, else roles by layer; scores without a sign as their table."""
    frame = result.table.frame
    if not result.signed:
        return result.table._repr_html_()
    by = "head" if frame["head"].notna().any() else "position"
    places = ["layer", by] if frame["position"].nunique() < 2 or by == "position" else None
    if places is None or frame["layer"].isna().any():
        return result.table._repr_html_()
    if frame["site"].str.split(".").str[-1].nunique() > 1 or frame["tower"].nunique() > 1:
        return result.table._repr_html_()
    recovery = result.recovery(places)
    draw = head_map if by == "head" else role_map
    return _shown(result, lambda _: draw(recovery), "Recovery", recovery)


def show_knockout(result: KnockoutResult) -> str:
    """Change of the answer's probability by layer, a line per edge."""
    summary = result.table.mean(["layer", "position"], cluster="pair")
    return _shown(
        result,
        lambda _: layer_curve(
            summary,
            hue="position",
            label="change of probability (%)",
            baseline=0,
            baseline_label="no effect",
            unit="pairs",
        ),
        "What cutting attention does to the answer",
        summary,
    )


def show_sweep(result: ProbeSweep) -> str:
    """Balanced accuracy along the model, with its controls."""
    summary = result.summary
    if "head" in summary and summary["head"].notna().any():
        return _shown_table(summary)
    return _shown(
        result,
        probe_flow,
        "Balanced accuracy of linear probes on held-out groups",
        summary,
    )


def show_curve(result: CircuitCurve) -> str:
    """Faithfulness over the kept fraction."""
    rows = [
        {"fraction": fraction, **estimate.to_dict()}
        for fraction, estimate in zip(result.fractions, result.faithfulness, strict=True)
    ]
    drawn = pd.DataFrame(rows)
    return _shown(
        result,
        lambda _: layer_curve(
            drawn, x="fraction", label="faithfulness", baseline=1, baseline_label="full model"
        ),
        f"Faithfulness by kept fraction of {result.of}",
        drawn,
    )


def show_against_random(result: AgainstRandom) -> str:
    """Each measure of the circuit with its interval, and where 95% of the random ones lie."""
    summary = result.summary()
    random = summary.assign(
        estimate=summary["random"], low=summary["random_low"], high=summary["random_high"]
    )
    both = {"the circuit": summary, "random circuits": random}
    drawn = pd.concat(
        [
            rows.assign(circuit=name, n=result.table.frame["n"].iloc[0])
            for name, rows in both.items()
        ]
    ).assign(panel="share of the full effect")
    return _shown(
        result,
        lambda _: forest(drawn, rows="measure", panels="panel", hue="circuit", unit="pairs"),
        f"The circuit beside {len(result.of('faithfulness')[1])} random ones of its size",
        summary,
    )


def show_edges(result: EdgeScores) -> str:
    """The most important edges as a drawing."""
    n = min(_EDGES, int((result.mean != 0).sum()))
    if n == 0:
        return result.table._repr_html_()
    strongest = select_circuit(result, "top", n=n)
    edges = strongest.edge_table().sort_values("weight", key=abs, ascending=False)
    caption = f"The {n} most important edges ({result.method})"
    return _shown(result, lambda _: circuit(strongest), caption, edges)


def show_nodes(result: NodeScores) -> str:
    """The effect of the nodes that matter most, with intervals."""
    rows = result.table.frame.dropna(subset=["value"])
    means = ResultTable(rows).mean(["tower", "layer", "site", "head"], cluster="group")
    means = means.sort_values("estimate", key=abs, ascending=False)
    unit = rows["unit"].iloc[0]
    caption = f"The nodes that matter most ({result.method})"
    return _shown(result, lambda _: _node_forest(means.head(_ROWS), unit), caption, means)


def _node_forest(means: pd.DataFrame, unit: str) -> Figure:
    names = [
        ".".join(str(part) for part in (tower, layer, site, head) if not pd.isna(part))
        for tower, layer, site, head in means[["tower", "layer", "site", "head"]].to_numpy()
    ]
    drawn = means.assign(node=names, metric="effect on the answer")
    return forest(drawn, rows="node", reference=0.0, label=f"change of the metric ({unit})")


def show_direct(result: DirectResult) -> str:
    """What heads write towards the answer; without heads, their table."""
    heads = result.table.frame.dropna(subset=["head"])
    if heads.empty:
        return result.table._repr_html_()
    means = ResultTable(heads).mean(["layer", "head"], cluster="pair")
    caption = "What each head writes into logit(answer) - logit(foil)"
    return _shown(result, lambda _: head_map(means, label="logits"), caption, means)


def show_known(result: KnownNotSaid) -> str:
    """Probes among the answers that are wrong, beside all answers."""
    summary = result.summary
    some = summary[summary["site"] != "best"]
    parts = [
        pd.DataFrame(
            {
                "site": some["site"],
                "series": series,
                "estimate": some[name],
                "low": some[f"{name}_low"],
                "high": some[f"{name}_high"],
            }
        )
        for name, series in (("among_wrong", "wrong answers"), ("overall", "all answers"))
    ]
    drawn = pd.concat(parts, ignore_index=True)
    caption = f"How often probes are right where the model is wrong ({result.n_wrong} answers)"
    return _shown(
        result,
        lambda _: probe_flow(drawn, chance=None, label="probe is right (fraction)"),
        caption,
        summary,
    )


def show_cross_test(result: CrossTest) -> str:
    """A probe where it was trained, at the other place, and one trained there."""
    names = ("within", "cross", "ceiling")
    return _estimates(
        result,
        {name: getattr(result, name) for name in names},
        "balanced accuracy",
        "How a probe carries over",
    )


def show_causal_effect(result: CausalEffect) -> str:
    """Change of the answer by the direction, and beyond that of random ones."""
    found = {"probe's direction": result.effect, "beyond random": result.beyond_random}
    label = "change of the logit difference"
    return _estimates(result, found, label, "What acting on the direction does to the answers")


def show_profile(result: Profile) -> str:
    """Layer against layer, and what was found in words."""
    metric = "cka" if "cka" in set(result.best["metric"]) else str(result.best["metric"].iloc[0])
    columns = ["metric", "site", "other_site", "value", "low", "high", "threshold", "p", "p_within"]
    return _shown(
        result,
        lambda found: alignment_map(found, metric=metric),
        result.sentence,
        result.best[columns],
    )


def show_trajectory(result: Trajectory) -> str:
    """Representation beside behaviour, over the models."""
    return _shown(result, trajectory, result.sentence, result.overview())


def _estimates(result: Result, found: dict[str, Estimate], label: str, caption: str) -> str:
    rows = [{"row": name, "panel": label, **each.to_dict()} for name, each in found.items()]
    drawn = pd.DataFrame(rows)
    known = drawn.dropna(subset=["estimate"])
    return _shown(
        result,
        lambda _: forest(known, rows="row", panels="panel"),
        caption,
        drawn.drop(columns="panel"),
    )


def _on_grid(result: LensResult | TokenScores | SpokenAttention, row: int) -> bool:
    """Whether the tokens of a row can be laid over its image: not so for words and query tokens."""
    tokens = result.tokens[row]
    at = result.selection.at[result.selection.rows == row]
    return bool(((tokens.row[at] >= 0) & (tokens.tile[at] == 0)).any())


def _image(images: tuple[Any, ...], row: int) -> Any:
    image = images[row] if row < len(images) else None
    return None if isinstance(image, list | tuple) else image


def _shown(
    result: Result,
    draw: Callable[[Any], Figure],
    caption: str,
    summary: pd.DataFrame | None = None,
) -> str:
    picture = base64.b64encode(to_png(draw(result))).decode()
    table = result.table._repr_html_() if summary is None else _shown_table(summary)
    return (
        f'<figure><img alt="{html.escape(caption)}" style="max-width:100%" '
        f'src="data:image/png;base64,{picture}"/><figcaption>{html.escape(caption)}</figcaption>'
        f"</figure>{table}"
    )


def _shown_table(frame: pd.DataFrame) -> str:
    more = f"<p>{len(frame)} rows</p>" if len(frame) > _ROWS else ""
    return frame.head(_ROWS).to_html(index=False, border=0, float_format="{:.3f}".format) + more
