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
# # 2. What image tokens say
#
# An image token is a vector in the language model's stream. The *logit lens* decodes it with the
# model's own unembedding: lens(h) = softmax(W_U norm(h)). Does the patch of a red circle say "red",
# or "circle", and from which layer on?

# %%
import lvlm_interp as li

model = li.load_model("scenes-balanced")
example = li.scenes.pairs("attribute", n=1, seed=1, kind="evidence")[0].clean
print(example.prompt, "->", example.answer)

# %%
inputs = model.prepare([example])
shape, colour = example.labels["shape"], example.labels["color"]
lens = li.lens.logit_lens(
    model, inputs, sites="text.embed, text.*.resid_post", words=[shape, colour]
)
lens

# %% [markdown]
# One word over the image. The frame is the object that the question is about.

# %%
last = lens.layers[-1]
li.plotting.overlay(
    example.image,
    lens.grid(colour, layer=last),
    label=f"probability of '{colour}'",
    box=example.boxes["object"],
    title=f"layer {last}",
)

# %% [markdown]
# Is that one lucky picture? `localise` scores the heat of a word against the true place in many
# scenes, beside chance and beside raw attention from the last token.

# %%
examples = [pair.clean for pair in li.scenes.pairs("attribute", n=48, seed=2, kind="evidence")]
words = [each.labels["color"] for each in examples]
li.lens.localise(model, examples, words)

# %% [markdown]
# The logit lens assumes that every layer speaks the last layer's language. The *tuned lens* learns
# an affine translator per layer, and says on held-out scenes how much closer it comes to the
# model's
# own prediction.

# %%
train = [pair.clean for pair in li.scenes.pairs("all", n=120, seed=10)]
held_out = [pair.clean for pair in li.scenes.pairs("all", n=40, seed=11)]
tuned = li.lens.train_tuned_lens(model, train, steps=60, progress=False)
li.lens.compare_lenses(model, tuned, held_out)

# %% [markdown]
# And which tokens does the answer need? Replace some of them by the mean image token and ask again.

# %%
li.lens.token_ablation(model, examples, kind="mean")

# %% [markdown]
# **A question to try:** is the *shape* found as well as the colour? Where does the tuned lens find
# what the logit lens misses (`li.lens.localise(..., tuned=tuned)`)?
