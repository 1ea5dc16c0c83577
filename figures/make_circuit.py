"""Find the circuit of the object flaw of `scenes`, and store it as JSON.

`python figures/make_circuit.py` writes `figures/data/circuit_object.json`: 40 edges grown from the
logits by EAP-IG along pixels on trigger pairs, and how faithful, complete and minimal they are on
pairs of other scenes, beside random circuits of as many edges that are grown too. `fig_circuit.py`
draws it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import lvlm_interp as li

OUT = Path(__file__).parent / "data" / "circuit_object.json"
N_PAIRS, N_EDGES, DRAWS, SETS, SEED = 24, 40, 19, 5, 17


def main() -> None:
    """Score, select, judge on other pairs, write."""
    model = li.load_model("scenes")
    pairs = li.scenes.pairs("object", 2 * N_PAIRS, seed=SEED, kind="trigger")
    ranking, test = pairs[:N_PAIRS], pairs[N_PAIRS:]
    graph = li.circuits.Graph.of(model, roles=("object", "question", "last"))
    scores = li.circuits.score_edges(model, ranking, graph, method="eap_ig")
    circuit = li.circuits.select_circuit(scores, "greedy", n=N_EDGES)
    found = li.circuits.against_random(
        model, circuit, test, strategy="greedy", draws=DRAWS, sets=SETS, seed=SEED
    )
    own, random = found.of("faithfulness")
    note = {
        **circuit.note,
        "pairs": N_PAIRS,
        "seed": SEED,
        "faithfulness": [own.estimate, own.low, own.high],
        "random": [each.estimate for each in random],
        "against_random": found.summary().to_dict("records"),
    }
    replace(circuit, note=note).save(OUT)
    print(f"{OUT.name}: faithfulness {own.estimate:.2f} [{own.low:.2f}, {own.high:.2f}]")


if __name__ == "__main__":
    main()
