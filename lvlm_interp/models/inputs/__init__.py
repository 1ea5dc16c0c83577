"""What enters a model, from an image and a question to the place of every patch.

- `processors`, `prompts`: the model's own processor and chat template make its tensors.
- `batch`: `Inputs`, all tensors of a run with a `TokenMap` for each row.
- `rows`: which tiles, patches and windows belong to which row; `run` knows those of a run.
- `maps`: the token maps of a batch, and a check that images and placeholders fit.
- `positions`: where a role is in any tower.
- `sample`: one small input for any model.
"""

from lvlm_interp.models.inputs.batch import Inputs

__all__ = ["Inputs"]
