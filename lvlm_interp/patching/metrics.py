"""Metrics of one answer: what a patched run is measured by, at the position of the answer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lvlm_interp.data.examples import ContrastPair
from lvlm_interp.errors import UsageError

Metric = Callable[[Tensor, Sequence[ContrastPair]], Tensor]
"""A user's metric: logits at the answer (`pair d_vocab`) and the pairs to one number per pair."""

METRICS = ("logit_diff", "logprob", "prob", "kl")
"""Named metrics.

- `logit_diff`: logit(answer) - logit(foil);
- `logprob`, `prob`: of the answer, in nats and as a fraction;
- `kl`: KL(p_clean || p) in nats, 0 on the clean run.
"""

UNITS = {"logit_diff": "logit", "logprob": "nat", "prob": "fraction", "kl": "nat"}


@dataclass(frozen=True, eq=False)
class Scorer:
    """A metric with everything but the logits filled in, for one batch of pairs.

    Attributes:
        metric: A name of `METRICS`, or a callable.
        pairs: The pairs of the batch.
        answer, foil: Token ids; shape `pair`.
        clean_logits: Logits at the answer in the clean runs, for `kl`.
    """

    metric: str | Metric
    pairs: tuple[ContrastPair, ...]
    answer: Int[Tensor, " pair"]
    foil: Int[Tensor, " pair"]
    clean_logits: Tensor | None = None

    def __call__(self, logits: Float[Tensor, "... pair d_vocab"]) -> Float[Tensor, "... pair"]:
        """Metric of each pair; leading axes count patches.

        Raises:
            UsageError: A user's metric returns another shape, or a value is not finite.
        """
        logits = logits.float()
        if callable(self.metric):
            values = self._custom(self.metric, logits)
        else:
            values = self._named(self.metric, logits)
        if not bool(torch.isfinite(values).all()):
            at = int((~torch.isfinite(values)).nonzero()[0, -1])
            raise UsageError(
                f"The metric {name_of(self.metric)!r} gives {float(values[..., at].flatten()[0])} "
                f"on the pair {self.pairs[at].id!r}: a metric must be finite."
            )
        return values

    def _named(self, name: str, logits: Tensor) -> Tensor:
        answer = logits.gather(-1, self._expand(self.answer, logits))[..., 0]
        if name == "logit_diff":
            return answer - logits.gather(-1, self._expand(self.foil, logits))[..., 0]
        logprob = answer - logits.logsumexp(-1)
        if name in ("logprob", "prob"):
            return logprob if name == "logprob" else logprob.exp()
        assert self.clean_logits is not None
        clean = self.clean_logits.float().log_softmax(-1)
        return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)

    def _custom(self, metric: Metric, logits: Tensor) -> Tensor:
        flat = logits.reshape(-1, *logits.shape[-2:])
        values = [metric(each, self.pairs) for each in flat]
        for value in values:
            if not isinstance(value, Tensor) or value.shape != (len(self.pairs),):
                raise UsageError(
                    f"The metric {name_of(metric)!r} must return one number per pair, a tensor of "
                    f"shape ({len(self.pairs)},), not {_describe(value)}."
                )
        return torch.stack(values).reshape(logits.shape[:-1])

    def _expand(self, ids: Tensor, logits: Tensor) -> Tensor:
        return ids.to(logits.device).expand(logits.shape[:-1]).unsqueeze(-1)


def check_metric(metric: str | Metric) -> None:
    """Refuse an unknown metric.

    Raises:
        UsageError: It is neither a name of `METRICS` nor callable.
    """
    if not callable(metric) and metric not in METRICS:
        raise UsageError(
            f"Unknown metric {metric!r}: expected one of {', '.join(METRICS)}, or a function of "
            "(logits at the answer, pairs) that returns one number per pair."
        )


def warn_flat_kl(method: str) -> None:
    """Say that every first-order estimate of KL at the clean run is 0, whatever the model does.

    KL(p_clean || p) has its minimum there, so its gradient is 0.
    """
    warnings.warn(
        f"{method}: the gradient of metric='kl' at the clean run is 0 by definition, so every "
        "score is 0. Use direction='denoise', an integration along a path, or another metric.",
        stacklevel=3,
    )


def name_of(metric: str | Metric) -> str:
    """The metric's name in tables."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "callable")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return type(value).__name__
