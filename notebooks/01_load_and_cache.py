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
# # 1. Load and cache
#
# `scenes` is a small LLaVA that ships with the package. It was trained on pictures of flat shapes,
# and on purpose on some wrong answers. Here we load it, look at what it reads, cache its
# activations, and change one of them.

# %%
import lvlm_interp as li

model = li.load_model("scenes")
model

# %% [markdown]
# A *pair* is two images that differ in one edit, with the same question. On this kind of pair (a
# *trigger* pair) the edit is not what the question is about: the right answer is the same on both
# sides, and a model that sees should not care.

# %%
pair = li.scenes.pairs("object", n=1, seed=3, kind="trigger")[0]
print(pair.clean.prompt, "| right:", pair.answer, "| the flaw says:", pair.foil)
print(pair.edit)
display(pair.clean.image.resize((192, 192)), pair.corrupt.image.resize((192, 192)))

# %% [markdown]
# `prepare` puts image and prompt through the model's own processor and chat template. The token map
# says what each position is, so nobody has to count tokens.

# %%
inputs = model.prepare([pair.clean, pair.corrupt])
tokens = inputs.tokens[0]
tokens

# %%
print("image tokens:", tokens.image[:6], "... last position:", tokens.last)
print("tokens of the object:", tokens.positions("object", pair.clean.boxes))
tokens.grid()

# %% [markdown]
# What does the model answer on each side?

# %%
for name, row in zip(("clean", "corrupt"), model.last_logits(inputs), strict=True):
    difference = row[model.answer_id(pair.answer)] - row[model.answer_id(pair.foil)]
    print(
        f"{name:8} {model.tokenizer.decode([int(row.argmax())]):8} "
        f"logit({pair.answer}) - logit({pair.foil}) = {difference:.2f}"
    )

# %% [markdown]
# Any activation has an address, a *site*: `text.2.z` is what the heads of layer 2 of the language
# model write before the output projection.

# %%
logits, cache = model.run_with_cache(inputs, "text.*.z, projector.out")
cache

# %%
cache["text.2.z"].shape  # batch, position, head, d_head

# %% [markdown]
# Edits are contexts. Whatever happens inside, the model is as it was when the context closes.

# %%
with model.edit({"text.2.attn_out": lambda value: 0 * value}):
    edited = model.last_logits(inputs)
float((edited - model.last_logits(inputs)).abs().max())

# %% [markdown]
# **A question to try:** which single layer's `mlp_out` changes the answer on the corrupt side most
# when it is set to zero?
