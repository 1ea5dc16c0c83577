# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5. Circuits
#
# Heads do not act alone. An *edge* carries what one part writes to what another reads. We score all
# edges of the language model at once, keep the best, and ask how much of the behaviour they
# explain.

# %%
import lvlm_interp as li

model = li.load_model("scenes")
graph = li.circuits.Graph.of(model, vision=False)
ranking = li.scenes.pairs("object", n=32, seed=0, kind="trigger")
scores = li.circuits.score_edges(model, ranking, graph, method="eap_ig", progress=False)
print(graph.n_edges, "edges at the cost of", scores.n_forwards / len(ranking), "forwards a pair")

# %% [markdown]
# Grow a circuit from the logits: of all edges into what is already connected, add the best, again
# and again.

# %%
circuit = li.circuits.select_circuit(scores, "greedy", n=40)
li.plotting.circuit(circuit, most_edges=40)

# %% [markdown]
# Faithfulness, on pairs that had no part in the choice: all edges outside of the circuit carry the
# other run. 1 is the whole model's effect, 0 none of it.

# %%
test = li.scenes.pairs("object", n=24, seed=1, kind="trigger")
li.circuits.faithfulness(model, circuit, test)

# %%
curve = li.circuits.faithfulness_curve(
    model, graph, scores.importance(), test, fractions=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
)
curve

# %% [markdown]
# Any 40 edges might do as well. So we grow random circuits of the same size from the logits and
# measure them too. *Completeness* is how far the circuit and the model come apart when the same
# nodes are taken out of both (0 is best), *minimality* what a node of the circuit adds. CPR and CMD
# are the areas under $f$ and under $|1 - f|$, with random rankings as their control.

# %%
control = li.circuits.against_random(
    model,
    circuit,
    test[:12],
    importance=scores.importance(),
    strategy="greedy",
    fractions=(0.01, 0.05, 0.2, 1.0),
    draws=19,
    sets=3,
)
control

# %% [markdown]
# Random circuits carry nothing, and their nodes add nothing. A few of them look complete: what is
# taken out breaks the model too, so that both are at zero. Completeness means something only
# beside faithfulness.

# %% [markdown]
# **A question to try:** select on `method="eap"` instead of `"eap_ig"`. Which of the two reaches
# faithfulness 0.8 with fewer edges?
