"""The tuned lens: an affine translator per layer in front of the logit lens.

Belrose et al. 2023, "Eliciting Latent Predictions from Transformers with the Tuned Lens", eq. 10
to 12: TunedLens_l(h) = LogitLens(A_l h + b_l), with A_l and b_l trained to minimise
KL(f_final(h) || TunedLens_l(h)). A_l starts at the identity and b_l at 0, so training starts from
the logit lens. Deviation: Adam with a decaying rate in place of SGD with Nesterov momentum, which
needs no tuning of the rate on models of a few hundred units.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from lvlm_interp.errors import StoreError, UsageError
from lvlm_interp.files import atomic_path
from lvlm_interp.lens.logit_lens import LensResult, read_words, readable_sites
from lvlm_interp.lens.positions import Positions, Selection, choose, example_names, in_batches
from lvlm_interp.lens.readout import CHUNK_BYTES, Decoder, Translator
from lvlm_interp.models.identity import weight_hash
from lvlm_interp.models.inputs import Inputs
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.provenance import provenance
from lvlm_interp.results import Result, ResultTable
from lvlm_interp.sites import Site


@dataclass(frozen=True, repr=False)
class TunedLensFit(Result):
    """KL(model || lens) in nats on data that the lens was not trained on.

    `table` has a row per example x layer x metric, the mean over the example's tokens: `kl_tuned`
    and `kl_logit`.
    """


@dataclass(frozen=True, eq=False)
class TunedLens:
    """A translator per site, and the model it belongs to.

    Attributes:
        matrices: A_l - I by site; shape `d_model d_model`.
        biases: b_l by site; shape `d_model`.
        model_hash: `weight_hash` of the model it was trained for.
    """

    matrices: Mapping[Site, Float[Tensor, "d_model d_model"]]
    biases: Mapping[Site, Float[Tensor, " d_model"]]
    model_hash: str

    def translator(self, site: Site) -> Translator | None:
        """The affine map of a site; None where it has none, as behind the last layer."""
        if site not in self.matrices:
            return None
        matrix, bias = self.matrices[site], self.biases[site]
        return lambda hidden: hidden + hidden @ matrix.T.to(hidden) + bias.to(hidden)

    def __call__(
        self,
        model: LVLM,
        inputs: Inputs | Mapping[str, Any],
        *,
        sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
        positions: Positions = "image",
        top_k: int = 10,
        words: Sequence[str] = (),
        progress: bool = False,
    ) -> LensResult:
        """Decode as `logit_lens` does, each site through its translator.

        Raises:
            UsageError: A site that was not trained (other than the last residual stream, whose
                lens is the model's own prediction).
        """
        self.check(model)
        chosen = readable_sites(model, sites)
        last = Site("text", model.n_layers - 1, "resid_post")
        for site in chosen:
            if site not in self.matrices and site != last:
                trained = ", ".join(str(known) for known in self.matrices)
                raise UsageError(f"The tuned lens has no translator for {site}; it has {trained}.")
        translators = {site: found for site in chosen if (found := self.translator(site))}
        return read_words(
            model,
            inputs,
            sites=sites,
            positions=positions,
            top_k=top_k,
            words=words,
            decoder=Decoder(model),
            translators=translators,
            progress=progress,
        )

    def check(self, model: LVLM) -> None:
        """Refuse a model that the lens was not trained for.

        Raises:
            StoreError: The weights differ.
        """
        if weight_hash(model) != self.model_hash:
            raise StoreError(
                f"This tuned lens was trained for a model with weights {self.model_hash[:12]}, "
                f"not for {model.name} ({weight_hash(model)[:12]}): train one for it."
            )

    def save(self, path: str | Path) -> Path:
        """Write translators and the model's hash to one safetensors file, whole or absent."""
        tensors = {f"{site}/matrix": value.contiguous() for site, value in self.matrices.items()}
        tensors |= {f"{site}/bias": value.contiguous() for site, value in self.biases.items()}
        notes = {"lvlm_interp": json.dumps({"kind": "tuned_lens", "model_hash": self.model_hash})}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=notes)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path, model: LVLM) -> TunedLens:
        """Read what `save` wrote.

        Raises:
            StoreError: No such file, not a tuned lens, or trained for another model.
        """
        try:
            with safe_open(str(path), framework="pt") as file:
                notes = json.loads((file.metadata() or {})["lvlm_interp"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
            raise StoreError(f"{path} is no saved tuned lens ({error}).") from error
        parts: dict[str, dict[Site, Tensor]] = {"matrix": {}, "bias": {}}
        for name in sorted(tensors):
            site, _, part = name.partition("/")
            parts[part][Site.parse(site)] = tensors[name]
        lens = cls(parts["matrix"], parts["bias"], notes["model_hash"])
        lens.check(model)
        return lens


class TunedLensTrainer:
    """Trains a tuned lens batch by batch; keeps no data.

    Args:
        model: The model.
        sites: Residual streams to translate; the last one needs none and is left out.
        positions: Positions to train on, as in `logit_lens`.
        steps: Number of updates that will come; the rate falls linearly to 0 over them.
        learning_rate: Of Adam at the start.
        weight_decay: Pull of A - I and b towards 0.
    """

    def __init__(
        self,
        model: LVLM,
        *,
        sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
        positions: Positions = "all",
        steps: int = 250,
        learning_rate: float = 1e-3,
        weight_decay: float = 1e-3,
    ) -> None:
        if steps < 1:
            raise UsageError(f"steps must be at least 1, got {steps}.")
        self.model, self.positions, self.steps = model, positions, steps
        last = Site("text", model.n_layers - 1, "resid_post")
        self.sites = [site for site in readable_sites(model, sites) if site != last]
        if any(site.name == "z" for site in self.sites):
            raise UsageError("A tuned lens translates a residual stream: heads have no translator.")
        self._decoder = Decoder(model)
        d, device = model.d_model, model.device
        self.matrices = {site: torch.zeros(d, d, device=device) for site in self.sites}
        self.biases = {site: torch.zeros(d, device=device) for site in self.sites}
        for parameter in self._parameters():
            parameter.requires_grad_()
        self._adam = torch.optim.AdamW(
            self._parameters(), lr=learning_rate, weight_decay=weight_decay
        )
        self._rate = torch.optim.lr_scheduler.LinearLR(
            self._adam, start_factor=1.0, end_factor=0.02, total_iters=steps
        )

    def update(self, inputs: Inputs | Mapping[str, Any]) -> dict[Site, float]:
        """One step on one batch.

        Returns:
            KL in nats before the step, by site.
        """
        states, target = _states_and_target(self.model, inputs, self.sites, self.positions)
        self._adam.zero_grad()
        losses = {}
        for site in self.sites:
            losses[site] = self._accumulate(site, states[site], target)
        self._adam.step()
        self._rate.step()
        return losses

    def lens(self) -> TunedLens:
        """The lens as it stands."""
        return TunedLens(
            {site: value.detach().clone() for site, value in self.matrices.items()},
            {site: value.detach().clone() for site, value in self.biases.items()},
            weight_hash(self.model),
        )

    def _parameters(self) -> list[Tensor]:
        return [*self.matrices.values(), *self.biases.values()]

    def _accumulate(self, site: Site, states: Tensor, target: Tensor) -> float:
        """Adds the gradient of the mean KL of one site, a chunk of tokens at a time."""
        matrix, bias = self.matrices[site], self.biases[site]
        total = 0.0
        start = 0
        for chunk in self._decoder.chunks(states, CHUNK_BYTES // 2):
            wanted = self._decoder.logits(target[start : start + len(chunk)]).log_softmax(-1)
            start += len(chunk)
            with torch.enable_grad():
                moved = chunk.float() + chunk.float() @ matrix.T + bias
                logits = self._decoder.logits(moved.to(chunk.dtype))
                loss = _kl(wanted.detach(), logits).sum() / len(states)
                # Only the translators get gradients; the model's own stay as they are.
                found = torch.autograd.grad(loss, [matrix, bias])
            for parameter, gradient in zip((matrix, bias), found, strict=True):
                parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
            total += float(loss.detach())
        return total


def train_tuned_lens(
    model: LVLM,
    examples: Sequence[Any],
    *,
    sites: str | Site | Iterable[str | Site] = "text.*.resid_post",
    positions: Positions = "all",
    steps: int = 250,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> TunedLens:
    """Train a tuned lens on examples, in random batches.

    Args:
        model: The model.
        examples: What `model.prepare` takes.
        sites: Residual streams to translate.
        positions: Positions to train on.
        steps: Number of batches.
        batch_size: Examples in a batch.
        learning_rate: Of Adam at the start.
        seed: Of the order of the examples.
        progress: Show a bar.

    Raises:
        UsageError: There are no examples.
    """
    if not examples:
        raise UsageError("A tuned lens needs examples to train on, got none.")
    trainer = TunedLensTrainer(
        model, sites=sites, positions=positions, steps=steps, learning_rate=learning_rate
    )
    rng = np.random.default_rng(seed)
    bar = tqdm(range(steps), desc="tuned lens", unit="step", disable=not progress)
    for _ in bar:
        picked = rng.choice(len(examples), min(batch_size, len(examples)), replace=False)
        losses = trainer.update(model.prepare([examples[i] for i in picked]))
        bar.set_postfix(kl=f"{np.mean(list(losses.values())):.3f}", refresh=False)
    return trainer.lens()


def compare_lenses(
    model: LVLM,
    lens: TunedLens,
    examples: Sequence[Any],
    *,
    positions: Positions = "all",
    batch_size: int = 16,
    progress: bool = False,
) -> TunedLensFit:
    """KL(model || lens) of the tuned and of the logit lens, on held-out examples.

    Args:
        model: The model.
        lens: The tuned lens.
        examples: Examples that it was not trained on.
        positions: Positions to judge it on.
        batch_size: Examples at once.
        progress: Show a bar.
    """
    lens.check(model)
    sites = list(lens.matrices)
    decoder = Decoder(model)
    rows: list[dict[str, Any]] = []
    for span in in_batches(examples, batch_size, "held-out KL", progress):
        inputs = model.prepare([examples[i] for i in span])
        selection = choose(inputs, positions)
        states, target = _states_and_target(model, inputs, sites, positions)
        for site in sites:
            for metric, translator in (("kl_tuned", lens.translator(site)), ("kl_logit", None)):
                values = _kl_of(decoder, states[site], target, translator)
                rows += _rows_of(inputs, selection, site, metric, values)
    notes = provenance(model=model.name, weight_hash=lens.model_hash, dtype=str(model.dtype))
    return TunedLensFit(ResultTable(pd.DataFrame(rows), notes))


def _states_and_target(
    model: LVLM, inputs: Inputs | Mapping[str, Any], sites: Sequence[Site], positions: Positions
) -> tuple[dict[Site, Tensor], Tensor]:
    """States at each site and at the last layer, whose decoding is the final distribution."""
    ready = model.as_inputs(inputs)
    selection = choose(ready, positions)
    last = Site("text", model.n_layers - 1, "resid_post")
    with model.record([*sites, last], keep=lambda _site, value: selection.gather(value)) as cache:
        model(ready, logits_to_keep=1)
    return {site: cache[site] for site in sites}, cache[last]


def _kl(wanted: Float[Tensor, "token d_vocab"], logits: Float[Tensor, "token d_vocab"]) -> Tensor:
    """KL(wanted || softmax(logits)) of each token, in nats."""
    return (wanted.exp() * (wanted - logits.log_softmax(-1))).sum(-1)


def _kl_of(
    decoder: Decoder, states: Tensor, target: Tensor, translator: Translator | None
) -> np.ndarray:
    parts, start = [], 0
    with torch.no_grad():
        for chunk in decoder.chunks(states, CHUNK_BYTES // 2):
            wanted = decoder.logits(target[start : start + len(chunk)]).log_softmax(-1)
            start += len(chunk)
            parts.append(_kl(wanted, decoder.logits(translator(chunk) if translator else chunk)))
    return torch.cat(parts).cpu().numpy()


def _rows_of(
    inputs: Inputs, selection: Selection, site: Site, metric: str, values: np.ndarray
) -> list[dict[str, Any]]:
    return [
        {
            "example": name,
            "tower": "text",
            "layer": site.layer,
            "site": str(site),
            "metric": metric,
            "value": float(values[selection.rows == row].mean()),
            "unit": "nats",
        }
        for row, name in enumerate(example_names(inputs))
    ]
