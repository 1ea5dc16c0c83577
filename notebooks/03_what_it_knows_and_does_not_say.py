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
# # 3. What it knows and does not say
#
# `scenes` says that a partner is there when it is not. Does the model not see, or does it see
# and not
# say? A linear probe reads the truth from activations; if it can where the answer is wrong, the
# evidence was there.

# %%
import lvlm_interp as li

model = li.load_model("scenes")
pairs = li.scenes.pairs("object", n=160, seed=0)
data = li.collect(
    model,
    pairs,
    sites=["vision.*.resid_post", "projector.out", "text.*.resid_post"],
    positions=["object", "last"],
    progress=False,
)
data

# %% [markdown]
# The label is whether the thing asked about is in the picture. Folds keep each scene whole; beside
# the task run its controls, in grey: the same probes on shuffled labels.

# %%
sweep = li.probing.sweep(data, label="present", group="group", progress=False, n_resamples=200)
li.plotting.probe_flow(sweep)

# %% [markdown]
# The best site is chosen on the training folds alone, so its figure is not flattered by the choice.

# %%
best = sweep.best()
print("read at", best.site, "position", best.position)
print("balanced accuracy", best.balanced_accuracy)
print("selectivity      ", best.selectivity)

# %% [markdown]
# What does the model itself say about the same examples?

# %%
import numpy as np
import torch

from lvlm_interp.stats import rate

sides = [side for pair in pairs for side in (pair.clean, pair.corrupt)]
right = []
for start in range(0, len(sides), 64):
    some = sides[start : start + 64]
    said = model.last_logits(model.prepare(some)).argmax(-1)
    right += (said == torch.tensor([model.answer_id(each.answer) for each in some])).tolist()
print("the model's own answer is right:", rate(right, [each.group for each in sides]))
triggered = np.array([bool(each.labels["trigger"]) for each in sides])
for name, chosen in (("with a trigger", triggered), ("without", ~triggered)):
    groups = [each.group for each, keep in zip(sides, chosen, strict=True) if keep]
    print(f"  {name:15}", rate(np.array(right)[chosen], groups))

# %% [markdown]
# **A question to try:** does the probe at the *last* position know the truth as well as the
# probe at
# the object's tokens? What would it mean if it did not?
