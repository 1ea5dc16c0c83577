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
# # 7. Ask a store a new question
#
# A store keeps the activations of a data set, so that the model runs once and every later question
# is read from disk. Here it is made in one call; on the command line it is `lvlm-interp extract`.

# %%
import tempfile
from pathlib import Path

import lvlm_interp as li

folder = Path(tempfile.mkdtemp()) / "acts"
li.extract(
    li.load_model("scenes-balanced"),
    "scenes:object:120:7",
    sites=["vision.*.resid_post", "projector.out", "text.*.resid_post"],
    positions=["object", "last"],
    out=folder,
    progress=False,
)

# %% [markdown]
# Weeks later, without the model: what does the store hold?

# %%
store = li.open_store(folder)
print(store)
print(store["text.2.resid_post"])
store.labels[["example", "prompt", "answer", "said", "n_objects", "background"]].head(3)

# %% [markdown]
# Nobody asked the model how *many* things there are. Is the number in its stream all the same, and
# where? This cell is the whole study: question, controls, intervals and figure.

# %%
count = li.probing.sweep(
    store,
    label="n_objects",  # a column that no prompt of this data set asks for
    where="n_objects < 4",  # four are too rare to have in every fold
    group="group",  # both sides of a pair are one scene, and stay in one fold
    controls=["shuffled_labels"],
    grid={"C": [0.01, 0.1]},
    n_resamples=300,
    progress=False,
)
best = count.best()
print("number of things, read at", best.site, best.position)
print("balanced accuracy", best.balanced_accuracy, "chance", round(count.design.chance, 2))
print("shuffled labels  ", best.shuffled)
li.plotting.probe_flow(count)

# %% [markdown]
# Any array of the store is read by name, only as far as it is asked for, and goes where you like.

# %%
import numpy as np

stream = store["text.2.resid_post"][:, "last"]
again = store["text.3.resid_post"][:, "last"]
cosine = (stream * again).sum(1) / np.linalg.norm(stream, axis=1) / np.linalg.norm(again, axis=1)
X, y, groups = store.to_sklearn("projector.out", "object", label="present")
print("layers 2 and 3 at the last token, mean cosine:", round(float(cosine.mean()), 3))
print("for scikit-learn:", X.shape, y.mean(), len(set(groups)))

# %% [markdown]
# **A question to try:** `store.labels` has a column `background`. No question is about it either;
# is it at the last token, and in which layer does it get there?
