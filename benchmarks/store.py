"""Cost of the activation store: extraction beside bare forwards, writes and reads beside the disk.

Extraction is compared with bare batched forwards of the same examples through the same processor,
in batches of the same size, in turns in one run; torch has one thread in both, and the store is
written by a second thread, which a second core lets run beside it. Writes are compared with raw
writes of the same bytes, synced; the read of one layer with a memory map that holds the layers side
by side.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from harness import Row, interleaved, row, run

N = 512
LAYERS, WIDTH, POSITIONS = 12, 768, 4
SAMPLES = 1024


def rows() -> list[Row]:
    """Ratios of extraction, write and one-layer read."""
    with tempfile.TemporaryDirectory() as folder:
        return [*extraction(Path(folder)), *disk(Path(folder))]


def extraction(folder: Path) -> list[Row]:
    """Examples per second, against bare batched forwards."""
    import torch

    from lvlm_interp.activations.extract import extract
    from lvlm_interp.data.sources import load_examples
    from lvlm_interp.models.loading import wrap
    from lvlm_interp.organisms.architecture import Sizes, build_model, build_processor

    torch.set_num_threads(1)
    model = wrap(build_model(Sizes(), 0), build_processor())
    examples = load_examples(f"scenes:object:{N // 2}:0")
    cases = {
        "resid_post of all layers, 3 positions": (
            "text.*.resid_post,vision.*.resid_post",
            "object,last,image_mean",
        ),
        "resid_post and z of all layers, 4 positions": (
            "text.*.resid_post,text.*.z,vision.*.resid_post",
            "object,last,image_mean,question",
        ),
    }

    def bare() -> None:
        for start in range(0, N, 32):
            model.last_logits(model.prepare(examples[start : start + 32]))

    def stored(sites: str, positions: str) -> None:
        out = Path(tempfile.mkdtemp(dir=folder))  # removed with the rest, not in the timed part
        extract(model, examples, sites=sites, positions=positions, out=out, progress=False)

    functions: dict[str, Any] = {"bare": bare}
    functions |= {name: (lambda w=where: stored(*w)) for name, where in cases.items()}
    seconds = interleaved(functions, repeats=3)
    base = N / seconds["bare"]
    return [
        row(
            f"extract {N} scenes, {name}",
            "examples/s",
            N / seconds[name],
            baseline=base,
            baseline_name="bare forwards",
            bound=0.85,
        )
        for name in cases
    ]


def disk(folder: Path) -> list[Row]:
    """MB/s of the arrays, against raw files."""
    from lvlm_interp.activations.arrays import SHARD, create, open_array

    shape = (SAMPLES, LAYERS, POSITIONS, WIDTH)
    values = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    megabytes = values.nbytes / 1e6
    flat = np.lib.format.open_memmap(folder / "map.npy", "w+", np.float32, shape)
    flat[:] = values
    flat.flush()

    def write_zarr() -> None:
        shutil.rmtree(folder / "zarr", ignore_errors=True)
        array = create(folder / "zarr", shape, "float32")
        for start in range(0, SAMPLES, 8 * SHARD):
            array[start : start + 8 * SHARD].write(values[start : start + 8 * SHARD]).result()

    def write_raw() -> None:
        for start in range(0, SAMPLES, SHARD):
            with open(folder / f"raw{start}", "wb") as file:
                file.write(memoryview(values[start : start + SHARD]).cast("B"))
                os.fsync(file.fileno())

    def read_zarr() -> None:
        open_array(folder / "zarr")[:, 5].read().result()

    def read_map() -> None:
        np.ascontiguousarray(np.load(folder / "map.npy", mmap_mode="r")[:, 5])

    functions = {"write": write_zarr, "raw": write_raw, "read": read_zarr, "map": read_map}
    seconds = interleaved(functions, repeats=5)
    layer = megabytes / LAYERS
    size = f"{SAMPLES} x {LAYERS} layers x {POSITIONS} positions x {WIDTH}"
    return [
        row(
            f"write {size}",
            "MB/s",
            megabytes / seconds["write"],
            baseline=megabytes / seconds["raw"],
            baseline_name="raw synced files",
        ),
        row(
            f"read one layer of {size}",
            "MB/s",
            layer / seconds["read"],
            baseline=layer / seconds["map"],
            baseline_name="a memory map, both in the page cache",
        ),
    ]


if __name__ == "__main__":
    run(rows)
