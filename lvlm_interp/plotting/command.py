"""`lvlm-interp lens`."""

from __future__ import annotations

import sys
from pathlib import Path

from lvlm_interp.errors import UsageError
from lvlm_interp.lens import logit_lens
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.inputs.images import open_image
from lvlm_interp.models.loading import load_for_command
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.plotting.page import write_lens_page


def lens(
    model: str,
    image: Path | None = None,
    prompt: str | None = None,
    out: Path = Path("lens.html"),
    words: list[str] | None = None,
    site: str = "resid_post",
    norm: str = "final",
    top_k: int = 20,
    force: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
) -> None:
    """Write a page that shows what each image token says, layer by layer.

    Args:
        model: Folder, hub id, or shipped name (scenes, scenes-balanced).
        image: Image file.
        prompt: What the model is asked; the chat template is the model's own.
        out: The page to write; it opens in a browser from disk, without a network.
        words: Words with commas whose probability is kept at every patch, so that searching them is
            exact.
        site: Name of the site to decode in every layer, such as resid_post or mlp_out.
        norm: The model's final norm before the unembedding (final), or none.
        top_k: Words to keep of each patch.
        force: Replace an existing page.
        device: Where the model runs; auto is a GPU where there is one.
        dtype: Of the weights; auto is the checkpoint's own.
        revision: Of a hub checkpoint.
    """
    if image is None or prompt is None:
        missing = "--image" if image is None else "--prompt"
        raise UsageError(
            f"lens needs {missing}: lvlm-interp lens MODEL --image FILE --prompt TEXT."
        )
    if out.exists() and not force:
        raise UsageError(f"{out} exists already: choose another --out, or add --force.")
    picture = open_image(image)
    loaded = load_for_command(model, device, dtype, revision)
    inputs = loaded.prepare([(picture, prompt)])
    warn_of_unknown_words(loaded, inputs)
    result = logit_lens(
        loaded,
        inputs,
        sites=f"text.*.{site}",
        top_k=min(top_k, loaded.d_vocab),
        words=words or (),
        norm=norm,
        progress=True,
    )
    path = write_lens_page(result, out, model=loaded.name)
    sys.stdout.write(f"{path}\n")


def warn_of_unknown_words(model: LVLM, inputs: Inputs) -> None:
    """Say on stderr how many words of the prompt the tokenizer does not know."""
    unknown = model.tokenizer.unk_token_id
    n = 0 if unknown is None else int((inputs["input_ids"] == unknown).sum())
    if n:
        sys.stderr.write(
            f"lvlm-interp: warning: the tokenizer does not know {n} piece(s) of the prompt; the "
            f"model reads them as {model.tokenizer.unk_token!r}.\n"
        )
