"""First-order estimates of one batch: what AtP and its corrections make of values and gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lvlm_interp.errors import UsageError
from lvlm_interp.models.lvlm import LVLM
from lvlm_interp.patching.components import unit_axis
from lvlm_interp.patching.gradients import GradientRun, Integration, gradient_run, mean_gradients
from lvlm_interp.patching.runs import BaseRuns
from lvlm_interp.sites import Site

QK = {"q": ("rot_q", "rot_k", "pattern"), "k": ("rot_q", "rot_k", "pattern")}


def qk_sites(sites: Sequence[Site]) -> list[Site]:
    """What the QK fix needs to see, for the q and k among the sites."""
    needed: dict[Site, None] = {}
    for site in sites:
        for part in QK.get(site.name, ()):
            needed[Site(site.tower, site.layer, part)] = None
    return list(needed)


class Estimator:
    """Scores of all components of one batch.

    Attributes:
        runs: The base runs, with the metric of both sides filled in.
        m_target: Metric of the run that is patched; shape `pair`.
        cost: Forwards over one pair that it took; a backward counts as two forwards.
    """

    def __init__(
        self,
        model: LVLM,
        runs: BaseRuns,
        sites: Sequence[Site],
        wanted: Sequence[Site],
        qk_fix: bool,
        graddrop: bool,
        integration: Integration | None,
    ) -> None:
        self.model = model
        self.qk_fix = qk_fix
        layers = _layers(model, sites) if graddrop else []
        source_run = runs.batch.clean if runs.direction == "denoise" else runs.batch.corrupt
        self._scores_of = list(wanted)
        run = gradient_run(model, runs.target, wanted, runs.score, droppable=layers)
        self._run: GradientRun = run
        self.m_target = run.metric.detach()
        side = "m_corrupt" if runs.direction == "denoise" else "m_clean"
        self.runs = replace(runs, **{side: self.m_target})
        n = len(runs.batch)
        if integration is not None:
            self._grads = [
                mean_gradients(model, runs.target, source_run, wanted, runs.score, integration)
            ]
            self.cost = n * (1.0 + 3.0 * integration.steps)
        elif graddrop:
            self._grads = []
            for key in layers:
                run.open_layers[key] = False
                self._grads.append(run.gradients(keep_graph=True))
                run.open_layers[key] = True
            self.cost = n * (1.0 + 2.0 * len(layers))
        else:
            self._grads = [run.gradients()]
            self.cost = n * 3.0
        self.graddrop = graddrop
        self._values = {site: value.detach() for site, value in run.values.items()}

    def scores(
        self, site: Site, mask: Bool[Tensor, "label pair pos"]
    ) -> Float[Tensor, "label unit pair"]:
        """Estimate of each unit with a label's positions patched together.

        With GradDrop: sum over dropped layers of the |estimate|, over L - 1.
        """
        parts = [self._estimate(site, mask, grads) for grads in self._grads]
        if not self.graddrop:
            return parts[0]
        return torch.stack(parts).abs().sum(0) / max(1, len(parts) - 1)

    def _estimate(self, site: Site, mask: Tensor, grads: dict[Site, Tensor]) -> Tensor:
        if self.qk_fix and site.name in QK:
            return self._through_pattern(site, mask, grads)
        change = self.runs.source[site].to(self._values[site]) - self._values[site]
        product = change * grads[site]
        axis = unit_axis(site)
        if "query_pos" in site.shape.split():
            per = product.sum(-1).transpose(1, 2)  # pair query_pos head
        elif axis is None:
            per = product.sum(-1, keepdim=True)
        else:
            per = product.flatten(axis + 1).sum(-1) if product.ndim > axis + 1 else product
        return torch.einsum("lbp,bpu->lub", mask.to(per), per)

    def _through_pattern(self, site: Site, mask: Tensor, grads: dict[Site, Tensor]) -> Tensor:
        """QK fix: (pattern with the patched q or k - pattern) . dm/dpattern."""
        names = [Site(site.tower, site.layer, part) for part in QK[site.name]]
        query, key, pattern_site = names
        old_q, old_k = self._values[query], self._values[key]
        new_q, new_k = (self.runs.source[each].to(old_q) for each in (query, key))
        pattern, grad = self._values[pattern_site], grads[pattern_site]
        scaling = self._scaling(pattern_site)
        groups = old_q.shape[2] // old_k.shape[2]

        def product(q: Tensor, k: Tensor) -> Tensor:
            k = k.repeat_interleave(groups, dim=2)
            return torch.einsum("bqhd,bkhd->bhqk", q, k) * scaling

        if site.name == "q":
            shift = product(new_q - old_q, old_k)
        else:
            shift = product(old_q, new_k - old_k)
        log = pattern.clamp_min(torch.finfo(pattern.dtype).tiny).log()
        hidden = pattern == 0  # the mask, and what underflows: it stays at zero
        out = []
        for chosen in mask:
            at = chosen[:, None, :, None] if site.name == "q" else chosen[:, None, None, :]
            scores = (log + shift * at).masked_fill(hidden, -torch.inf)
            change = torch.nan_to_num(scores.softmax(-1)) - pattern
            per_head = (change * grad).sum((-1, -2))  # pair head
            if site.name == "k":
                # A key-value head answers for every query head that reads it.
                per_head = per_head.unflatten(1, (-1, groups)).sum(-1)
            out.append(per_head.T)
        return torch.stack(out)

    def _scaling(self, site: Site) -> float:
        module = self.model.tap(site).module
        text = self.model.config.get_text_config()
        if getattr(text, "attn_logit_softcapping", None):
            raise UsageError("qk_fix does not know attention with a softcap, which this model has.")
        scale = getattr(module, "scaling", getattr(module, "scale", None))
        return float(scale) if scale is not None else self.model.towers[site.tower].d_head ** -0.5


def _layers(model: LVLM, sites: Sequence[Site]) -> list[tuple[str, int]]:
    """Layers whose branches GradDrop closes: of every tower between the sites and the logits."""
    towers = {site.tower for site in sites if site.layer is not None}
    wanted = ["text", *(tower for tower in model.towers if tower in towers and tower != "text")]
    return [(tower, layer) for tower in wanted for layer in range(model.towers[tower].n_layers)]
