"""`lvlm-interp align` and `lvlm-interp align stages`: table, figure and sentence."""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm_interp.activations.memory import collect
from lvlm_interp.alignment import (
    SHIPPED,
    beside_behaviour,
    per_example,
    profile,
    stages,
)
from lvlm_interp.alignment.shipped import CONDITION, scene_examples
from lvlm_interp.data.sources import load_examples
from lvlm_interp.errors import UsageError
from lvlm_interp.files import atomic_write
from lvlm_interp.models.loading import load_model
from lvlm_interp.plotting.alignment import alignment_map, trajectory
from lvlm_interp.plotting.style import save


def align(
    model: str,
    data: str | None = None,
    out: Path = Path("runs/align"),
    between: tuple[str, str] = ("image_mean", "caption"),
    sites: str = "text.embed,text.*.resid_post,text.final_norm",
    k: int = 10,
    n_permutations: int = 200,
    seed: int = 0,
    batch_size: int = 32,
    force: bool = False,
) -> None:
    """Measure how image and description are aligned inside a model, and write what was found.

    Args:
        model: Folder, hub id, or shipped name (scenes, scenes/stages/vision).
        data: Examples with a description each (caption in the labels of its row): a file, a
            folder, or scenes:LEVEL:N:SEED.
        out: Folder for table.parquet, best.csv, map.pdf, map.png, sentence.txt, and beside.parquet
            where right answers are known.
        between: The two positions that are compared.
        sites: Sites of the language model, separated by commas.
        k: Neighbours of the mutual kNN.
        n_permutations: Of each null.
        seed: Of permutations and subsamples.
        batch_size: Examples per forward.
        force: Write into a folder that holds an earlier result.
    """
    if data is None:
        raise UsageError("align needs --data: lvlm-interp align MODEL --data D --out DIR.")
    _check_out(out, force)
    examples = load_examples(data)
    lvlm = load_model(model)
    names = [name.strip() for name in sites.split(",") if name.strip()]
    x = collect(lvlm, examples, names, list(between), batch_size=batch_size, missing="nan")
    found = profile(x, between, k=k, n_permutations=n_permutations, seed=seed)
    sentences = [found.sentence]
    found.table.to_parquet(out / "table.parquet")
    atomic_write(out / "best.csv", found.best.to_csv(index=False))
    save(alignment_map(found), out / "map")
    if x.labels["wrong"].notna().any():
        beside = beside_behaviour(per_example(x, between, k=k), x.labels, seed=seed)
        beside.table.to_parquet(out / "beside.parquet")
        sentences.append(beside.sentence)
    _say(out, sentences)


def align_stages(
    checkpoints: list[str] | None = None,
    data: str | None = None,
    out: Path = Path("runs/stages"),
    n: int = 300,
    seed: int = 11,
    condition: str | None = None,
    heads: bool = False,
    n_permutations: int = 200,
    force: bool = False,
) -> None:
    """Show how alignment comes about over checkpoints: representation beside behaviour.

    Args:
        checkpoints: Folders or names in the order of training; the shipped ones by default.
        data: Examples with a description each; by default unbiased, trigger and control scenes.
        out: Folder for table.parquet, overview.csv, stages.pdf, stages.png and sentence.txt.
        n: Scenes of each condition, where no data are given.
        seed: Of scenes, permutations and subsamples.
        condition: Label that tells conditions apart; that of the scenes by default.
        heads: Measure each head (sites text.*.z) as well.
        n_permutations: Of each null.
        force: Write into a folder that holds an earlier result.
    """
    _check_out(out, force)
    examples = scene_examples(n, seed) if data is None else load_examples(data)
    by = CONDITION if data is None and condition is None else condition
    sites = ["text.embed", "text.*.resid_post", "text.final_norm"]
    found = stages(
        checkpoints or list(SHIPPED),
        examples,
        condition=by,
        seed=seed,
        n_permutations=n_permutations,
        sites=[sites[0], "text.*.z", *sites[1:]] if heads else sites,
        heads=heads,
    )
    shown = "unbiased" if data is None else "all"
    found.table.to_parquet(out / "table.parquet")
    atomic_write(out / "overview.csv", found.overview(shown).to_csv(index=False))
    save(trajectory(found, condition=shown), out / "stages")
    columns = [
        name
        for name in ("model", "cka_in", "cka_out", "mutual_knn_in", "mutual_knn_out", "cosine_out")
        if name in found.overview(shown)
    ]
    table = found.overview(shown)[[*columns, "accuracy", "text_accuracy"]]
    sys.stdout.write(table.round(2).to_string(index=False) + "\n")
    _say(out, [found.sentence])


def _check_out(out: Path, force: bool) -> None:
    if (out / "table.parquet").exists() and not force:
        raise UsageError(f"{out} holds a result already: choose another --out, or add --force.")
    out.mkdir(parents=True, exist_ok=True)


def _say(out: Path, sentences: list[str]) -> None:
    text = "\n".join(sentences) + "\n"
    atomic_write(out / "sentence.txt", text)
    sys.stdout.write(text)
