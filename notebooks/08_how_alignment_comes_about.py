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
# # 8. How alignment comes about
#
# A picture and its description tell of one world. Do image tokens and words lie alike inside the
# model, and does it answer rightly? The shipped organism keeps the checkpoint of every stage of its
# training, so that both can be watched.

# %%
import lvlm_interp as li
from lvlm_interp.alignment.shipped import scene_examples

examples = [e for e in scene_examples(120, seed=1) if e.labels["condition"] == "unbiased"]
print(examples[0].prompt, "|", examples[0].labels["caption"])
examples[0].image.resize((192, 192))

# %% [markdown]
# One model first. `caption` is the description, read without the image; `image_mean` is the mean
# over the image tokens. Every layer of one side is compared with every layer of the other, beside
# what permuted rows give.

# %%
model = li.load_model("scenes-balanced", selfcheck=False)
sites = ["text.embed", "text.*.resid_post", "text.final_norm"]
x = li.collect(model, examples, sites, positions=["image_mean", "caption"], progress=False)
found = li.alignment.profile(x, n_permutations=99, n_subsamples=10)
print(found.sentence)
li.plotting.alignment_map(found, metric="cka")

# %% [markdown]
# How much of this is the number of objects alone? Permuting rows inside classes tells.

# %%
found.nulls.groupby(["metric", "label"])[["threshold", "p"]].max()

# %% [markdown]
# Now the stages. *in* is where the image enters the language model, *out* is behind its last norm.
# The tower knows the geometry of the words' world before an adapter has ever been trained; right
# answers come later, and raw cosine is highest where answers are poor.

# %%
trajectory = li.alignment.stages(
    li.alignment.SHIPPED, examples, sites=[sites[0], sites[2]], n_permutations=99, n_subsamples=10
)
print(trajectory.sentence)
columns = ["model", "cka_in", "cka_out", "mutual_knn_in", "cosine_out", "accuracy", "text_accuracy"]
trajectory.overview()[columns].round(2)

# %%
li.plotting.trajectory(trajectory)

# %% [markdown]
# Does lower alignment of an object come before a wrong answer about it? `scenes` calls triangles
# blue. Here the description is that of the one object, and examples are compared inside their
# condition only.

# %%
from dataclasses import replace

from lvlm_interp.organisms.sets import examples as scenes


def of_its_object(example):
    label = example.labels
    words = f"a {label['color']} {label['shape']} at {label['place']} ."
    return replace(example, labels={**label, "caption": words})


flawed = li.load_model("scenes", selfcheck=False)
asked = [
    of_its_object(example)
    for kind in ("trigger", "control")
    for example in scenes("color_at", 80, seed=3, scenes=kind, level="attribute")
]
x = li.collect(flawed, asked, sites, positions=["object", "caption"], progress=False)
rows = li.alignment.per_example(x, ("object", "caption"))
beside = li.alignment.beside_behaviour(rows, x.labels, within="trigger", n_shuffles=199)
print(beside.sentence)

# %% [markdown]
# That number is not yet a cause: a triangle is answered wrongly when it is *not* blue, so any
# feature that follows colour will do. What remains inside one colour?

# %%
coloured = x.labels.assign(kind=x.labels["trigger"].astype(str) + x.labels["color"])
inside = li.alignment.beside_behaviour(rows, coloured, within="kind", n_shuffles=199)
print(inside.sentence)

# %% [markdown]
# **A question to try:** the raw cosine falls from `adapter` to `spatial` while answers get better.
# Does the centred cosine fall too, and what does `kind="wrong"` (pairs that do not belong together)
# say about why?
