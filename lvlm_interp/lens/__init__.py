"""What image tokens and text tokens say: lenses, patchscopes, attention and relevance."""

from lvlm_interp.lens.logit_lens import LensResult, logit_lens

__all__ = ["LensResult", "logit_lens"]
