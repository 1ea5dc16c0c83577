"""Alignment of 24 x 32 layers with its null: n = 1,024 rows, width 1,024, 200 permutations.

Mutual kNN (k = 10) and debiased CKA, against what they cannot do without, the Gram matrices' own
multiplications: one per layer (both metrics share it here), and one per layer and metric (unit rows
for neighbours, centred rows for CKA, as the metrics are written). And against the loop over pairs
of layers that released code runs: both Gram matrices and the metric anew for each pair and each
permutation, timed on a few and taken times their number.
"""

from __future__ import annotations

import threading
import time

from harness import Row, interleaved, row, run

N, WIDTH, LEFT, RIGHT, K, PERMUTATIONS = 1024, 1024, 24, 32, 10, 200


def rows() -> list[Row]:
    """Seconds, and the memory that is added at three times as many layers, in blocks."""
    import torch

    from lvlm_interp.alignment.shifts import shifted_pairs

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    # A few layers, read in turn: what is timed does not depend on their values.
    layers = [torch.randn(N, WIDTH, generator=generator) for _ in range(8)]

    def read(index: int) -> torch.Tensor:
        return layers[index % len(layers)]

    def grams() -> None:
        for index in range(LEFT + RIGHT):
            torch.mm(read(index), read(index).T)

    def ours() -> None:
        shifted_pairs(read, read, N, sizes=(LEFT, RIGHT), k=K, n_permutations=PERMUTATIONS)

    seconds = interleaved({"grams": grams, "ours": ours}, repeats=3, warmup=1)
    loop = interleaved({"loop": lambda: released_pair(layers[0], layers[1])}, repeats=3)["loop"]
    whole = loop * LEFT * RIGHT * (PERMUTATIONS + 1)
    case = f"{LEFT} x {RIGHT} layers, both metrics, {PERMUTATIONS} permutations"
    one = {"baseline": seconds["grams"], "baseline_name": "one product per layer"}
    two = {"baseline": 2 * seconds["grams"], "baseline_name": "one product per layer and metric"}
    pairs = {"baseline": whole, "baseline_name": "the loop over pairs and permutations"}
    plain = {"baseline": loop * LEFT * RIGHT, "baseline_name": "the loop over pairs, no null"}
    large = peak_added(lambda: blocks(read, 3))
    return [
        row(case, "seconds", seconds["ours"], **one),
        row(case, "seconds", seconds["ours"], **two, bound=2),
        row(case, "seconds", seconds["ours"], **pairs, bound=1 / 20),
        row(case, "seconds", seconds["ours"], **plain, bound=1 / 20),
        row(f"memory added, {3 * LEFT} x {3 * RIGHT} layers of 384 rows", "MiB", large, bound=64),
    ]


def blocks(read, times: int) -> None:
    """The same with a small budget, so that layers come in blocks."""
    from lvlm_interp.alignment.shifts import shifted_pairs

    sizes = (times * LEFT, times * RIGHT)
    # Fewer rows: what is asked is whether memory grows with the layers.
    shifted_pairs(
        lambda index: read(index)[:384],
        lambda index: read(index)[:384],
        384,
        sizes=sizes,
        k=K,
        n_permutations=10,
        budget=2**24,
    )


def released_pair(x, y) -> None:
    """What released code does for one pair: unit rows, both Gram matrices, sort, masks, HSIC."""
    import torch

    x, y = (torch.nn.functional.normalize(each, dim=1) for each in (x, y))
    n, lists = len(x), []
    for each in (x, y):
        near = (each @ each.T).fill_diagonal_(-1e8).argsort(dim=1, descending=True)[:, :K]
        lists.append(torch.zeros(n, n).scatter_(1, near, 1.0))
    (lists[0] * lists[1]).sum(dim=1).mean()
    grams = [(each @ each.T).fill_diagonal_(0) for each in (x, y)]
    for a, b in ((0, 1), (0, 0), (1, 1)):
        both = (grams[a] * grams[b].T).sum()
        cross = (grams[a] @ grams[b]).sum()
        _ = both + grams[a].sum() * grams[b].sum() / ((n - 1) * (n - 2)) - 2 * cross / (n - 2)


def peak_added(function) -> float:
    """MiB by which the resident memory rises while a function runs, sampled every 5 ms."""
    import psutil

    process = psutil.Process()
    before, peak, done = process.memory_info().rss, [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peak[0] = max(peak[0], process.memory_info().rss)
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    function()
    done.set()
    watcher.join()
    return max(0.0, (peak[0] - before) / 2**20)


if __name__ == "__main__":
    run(rows)
