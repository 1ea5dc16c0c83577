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
# # 6. Your own model and data
#
# Nothing above is about the shipped model. Any LLaVA-like checkpoint that transformers loads
# works by
# its folder or hub id, and any pairs of images that differ in one edit. Here we write such data to
# disk, as you would have it, and read it back.

# %%
import json
import os
import tempfile
from pathlib import Path

import lvlm_interp as li
from lvlm_interp.errors import LvlmInterpError

os.chdir(tempfile.mkdtemp())  # an empty folder to play in
lines = []
for index, pair in enumerate(li.scenes.pairs("relation", n=12, seed=4)):
    pair.clean.image.save(f"{index}_clean.png")
    pair.corrupt.image.save(f"{index}_corrupt.png")
    lines.append(
        {
            "clean": f"{index}_clean.png",
            "corrupt": f"{index}_corrupt.png",
            "prompt": pair.clean.prompt,
            "answer": pair.answer,
            "foil": pair.foil,
            "level": pair.level,
            "kind": pair.kind,
            "box": pair.box,
        }
    )
Path("pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
print(json.dumps(lines[0], indent=1))

# %% [markdown]
# A broken line is reported by its number, before anything is computed.

# %%
broken = Path("broken.jsonl")
broken.write_text(json.dumps({**lines[0], "level": "colour"}))
try:
    li.load_pairs(broken)
except LvlmInterpError as error:
    print(error)

# %%
pairs = li.load_pairs("pairs.jsonl")
model = li.load_model("scenes-balanced")  # or "path/to/checkpoint", or "org/name" on a hub
result = li.patching.activation_patch(model, pairs, "text.*.z", "all", progress=False)
result

# %% [markdown]
# Every number is in a tidy table with its provenance, and goes to parquet as it is.

# %%
result.table.to_parquet("heads.parquet")
again = li.ResultTable.read_parquet("heads.parquet")
{key: again.provenance[key] for key in ("model", "method", "versions")}

# %% [markdown]
# The whole chain, with a report, is one command:
#
#     lvlm-interp diagnose path/to/checkpoint --data pairs.jsonl --out runs/mine
#
# and a page to look at one image is another:
#
#     lvlm-interp lens CHECKPOINT --image photo.jpg --prompt "Is there a dog?" --out page.html
#
# **A question to try:** which of *your* image pairs would tell "does not see" from "sees and
# does not
# say"?
