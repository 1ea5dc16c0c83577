"""What image tokens and text tokens say: lenses, patchscopes, attention and relevance."""

from lvlm_interp.lens.attention import (
    AttentionMaps,
    Rollout,
    Sinks,
    TokenScores,
    attention_maps,
    rollout,
    visual_sinks,
)
from lvlm_interp.lens.confidence import Confidence, internal_confidence
from lvlm_interp.lens.detection import auroc
from lvlm_interp.lens.localise import Localisation, localise
from lvlm_interp.lens.logit_lens import LensResult, logit_lens
from lvlm_interp.lens.patchscope import PatchscopeResult, patchscope, self_consistency
from lvlm_interp.lens.relevance import Relevance, relevance
from lvlm_interp.lens.spoken import SpokenAttention, spoken_attention
from lvlm_interp.lens.token_ablation import TokenAblation, token_ablation
from lvlm_interp.lens.tuned_lens import (
    TunedLens,
    TunedLensFit,
    TunedLensTrainer,
    compare_lenses,
    train_tuned_lens,
)

__all__ = [
    "AttentionMaps",
    "Confidence",
    "LensResult",
    "Localisation",
    "PatchscopeResult",
    "Relevance",
    "Rollout",
    "Sinks",
    "SpokenAttention",
    "TokenAblation",
    "TokenScores",
    "TunedLens",
    "TunedLensFit",
    "TunedLensTrainer",
    "attention_maps",
    "auroc",
    "compare_lenses",
    "internal_confidence",
    "localise",
    "logit_lens",
    "patchscope",
    "relevance",
    "rollout",
    "self_consistency",
    "spoken_attention",
    "token_ablation",
    "train_tuned_lens",
    "visual_sinks",
]
