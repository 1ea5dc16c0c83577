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
# # 4. Patching: from a wrong answer to heads
#
# Put activations of the run without the trigger into the run with it. Where that restores the right
# answer, there the trigger acts. Recovery 0: nothing changed; 1: as right as without the trigger.

# %%
import lvlm_interp as li

model = li.load_model("scenes")
pairs = li.scenes.pairs("object", n=60, seed=0, kind="trigger")
pairs[0].edit

# %% [markdown]
# First by the role of the tokens, layer by layer.

# %%
by_role = li.patching.activation_patch(
    model, pairs, "text.*.resid_pre", ["edited", "other_image", "question", "last"], progress=False
)
li.plotting.role_map(by_role.recovery(["layer", "position"]))

# %% [markdown]
# Then by head. The heads are ranked on these pairs only, so what follows is tested on others.

# %%
by_head = li.patching.activation_patch(model, pairs, "text.*.z", "all", progress=False)
recovery = by_head.recovery(["layer", "head"])
top = [(int(row.layer), int(row.head)) for row in recovery.head(3).itertuples()]
li.plotting.head_map(recovery, marked=top)

# %% [markdown]
# Three heads stand out. One of them reads the trigger from the image; the others may only pass on
# what the model sees, rightly or not. So act on the first alone, on scenes that had no part in the
# ranking, and on as many random heads: each is replaced by its mean over scenes without a trigger.
# Both kinds of trigger scenes count: those where what the flaw says is false, and those where it is
# true. A model that merely says "no" more often is not mended.

# %%
import numpy as np
import pandas as pd
import torch

from lvlm_interp.organisms.sets import examples
from lvlm_interp.stats import rate

sets = {
    "trigger, partner absent": examples(
        "existence", 80, 7, scenes="trigger", level="object", partner=False
    ),
    "trigger, partner present": examples(
        "existence", 80, 7, scenes="trigger", level="object", partner=True
    ),
    "no trigger": examples("existence", 80, 7, scenes="neutral"),
}
means = li.patching.head_means(model, [pair.clean for pair in pairs])


def wrong(some, heads):
    inputs = model.prepare(some)
    with model.edit(li.patching.head_edit(model, heads, "mean", reference=means)):
        said = model.last_logits(inputs).argmax(-1)
    return (said != torch.tensor([model.answer_id(each.answer) for each in some])).numpy()


rng = np.random.default_rng(0)
every = [(layer, head) for layer in range(model.n_layers) for head in range(model.n_heads)]
every.remove(top[0])
rows = []
for condition, some in sets.items():
    for stage, heads in (("before", []), ("after", top[:1])):
        rows.append({"condition": condition, "stage": stage, **rate(wrong(some, heads)).to_dict()})
    for draw, pick in enumerate(rng.choice(len(every), 12, replace=False)):
        found = rate(wrong(some, [every[pick]])).to_dict()
        rows.append({"condition": condition, "stage": "random", "draw": draw, **found})
li.plotting.intervention(pd.DataFrame(rows))

# %% [markdown]
# **A question to try:** act on all three heads (`top`). Why is the model then wrong on both sides?
# Rank the heads on *evidence* pairs (`kind="evidence"`) and compare the two maps.
