"""Architectures that are not supported, and why, in one sentence each.

The reasons are about what the view would have to promise: a residual stream whose blocks are sums,
an attention function that can be opened, image tokens that stand somewhere in the prompt.
"""

from __future__ import annotations

_ENCODER_DECODER = (
    "It is an encoder-decoder: the image enters an encoder and no position of the prompt stands "
    "for a part of it."
)
_SAM = (
    "Its tower (SAM) computes attention with relative positions inside windows of its own code, "
    "where the attention function that opens scores and pattern is never called."
)
_LATENT = (
    "Its language model compresses keys and values of all heads into one latent vector, so there "
    "are no projections that give k and v of a head."
)
_NEEDS_TIMM = (
    "Its vision tower is a model of the package timm, which needs torchvision and is no dependency "
    "here, so it can be neither built nor proved."
)
_VQ = (
    "It turns the image into discrete words before the language model sees it, so there is no "
    "vision tower and no projector to read or write."
)
_HYPER = (
    "Its residual stream is several streams mixed between the blocks (hyper-connections), so a "
    "block is no sum of one stream and its branches."
)
_OWN_MERGE = (
    "Its tower merges patches in the middle of its blocks by an attention of its own, so the rows "
    "of its sites would change their length inside one tower."
)
_VIDEO = "It takes videos only, whose frames have no place in a token map of images."
_UNTRIED = 'Nobody has described its blocks yet: family="auto" tries what can be proved of it.'

REFUSED: dict[str, str] = {
    "aria": "The cross-attention that reads its image into queries is a module of torch (not the "
    "attention function), and the experts answer for all rows at once.",
    "blip": _ENCODER_DECODER,
    "chameleon": _VQ,
    "cohere_compass": _UNTRIED,
    "cosmos3_edge": _UNTRIED,
    "deepseek_ocr2": _SAM,
    "deepseek_vl_hybrid": _SAM,
    "diffusion_gemma": "It denoises blocks of text instead of predicting the next token, so there "
    "is no last position at which an answer is read.",
    "dots3_note": _LATENT,
    "emu3": _VQ,
    "ernie4_5_vl_moe": "Its experts for words and for patches get flattened halves of the "
    "sequence, and its resampler has two stages between tower and language model.",
    "evolla": "It reads proteins, not images, and AutoModelForImageTextToText cannot build it.",
    "fast_vlm": _NEEDS_TIMM,
    "florence2": _ENCODER_DECODER,
    "fuyu": "It has no vision tower: a linear layer embeds patches straight into the language "
    "model, so there is nothing to declare in front of it.",
    "gemma3n": _NEEDS_TIMM,
    "gemma4": "Embeddings per layer are added inside its blocks behind the MLP, so a block is no "
    "sum of its stream, attention and MLP.",
    "gemma4_unified": "It has no vision tower: patches are embedded straight into the language "
    "model, so there is nothing to declare in front of it.",
    "git": "Its image tokens are put in front of the text inside the model and have no placeholder "
    "in the prompt, so positions of inputs and of sites would differ.",
    "glm5_next": _HYPER,
    "granite4_vision": "Features of several vision layers are added to the language model's blocks "
    "by window Q-Formers, whose blocks are not described.",
    "granite_docling": _UNTRIED,
    "got_ocr2": _SAM,
    "hunyuan_vl": _UNTRIED,
    "idefics": "Its images enter by gated cross-attention layers in a list of their own beside the "
    "blocks, fed by a perceiver, and no position stands for a part of them.",
    "idefics2": "A perceiver reads its image into latents through keys of image and latents "
    "together, whose blocks are not described.",
    "inkling2": "Its attention has sinks, relative logits and convolutions on keys and values that "
    "the attention function of the view does not know.",
    "inkling_mm_model": "Its attention has relative logits and convolutions on keys and values "
    "that the attention function of the view does not know.",
    "instructblipvideo": _VIDEO,
    "kimi_k25": _LATENT,
    "kosmos-2": "Its image enters through a mask argument of its own instead of placeholders, and "
    "it norms between the heads and the output projection.",
    "kosmos-2.5": "Its image enters through a mask argument of its own instead of placeholders, "
    "and its tower gets patches with coordinates inside the pixels.",
    "lfm2_vl": "Its projector is called once per image, so projector.out has no one value in a run "
    "of several rows.",
    "lfm3_vl": "Its tower and its language model alternate attention with convolutions, and its "
    "projector is called once per image.",
    "minicpm_ocr": _OWN_MERGE,
    "minicpmv4_6": _OWN_MERGE,
    "minicpmv4_7": _OWN_MERGE,
    "minimax_m3_vl": "Its sparse attention picks blocks of keys outside of the attention function, "
    "so scores and pattern would not be those that the model uses.",
    "mistral4": "It is the text model alone: no image enters it.",
    "mistral_large4": _LATENT,
    "molmo2": "Its adapter gathers patches of several layers by index tensors of the processor, "
    "and how these lie in the image is not described yet.",
    "muse_glimmer": "Its attention has a gate of its own and norms that scale with the input "
    "behind it, whose parts are not described.",
    "muse_spark": "Gates multiply its residual stream behind each branch, so a block is no sum of "
    "its stream and its branches.",
    "nemotron_h_omni": "Its blocks have one branch each (a state space model, experts or "
    "attention), so there is no residual stream between attention and MLP in any of them.",
    "pi0": "It predicts the actions of a robot, not words.",
    "pix2struct": _ENCODER_DECODER,
    "pp_chart2table": _SAM,
    "pp_formulanet": _ENCODER_DECODER,
    "perception_lm": _NEEDS_TIMM,
    "qwen4_exp": "Embeddings of n-grams and per-layer inputs are added inside its blocks, and an "
    "indexer picks keys outside of the attention function.",
    "step3p7": "Convolutions shrink the grid behind its tower, so that a token reads pixels beyond "
    "its own cell, and a gate of its own multiplies its heads.",
    "t5gemma2": _ENCODER_DECODER,
    "udop": _ENCODER_DECODER,
    "unlimited_ocr": _SAM,
    "video_llava": _UNTRIED,
    "vision-encoder-decoder": _ENCODER_DECODER,
}
"""By `model_type`."""
