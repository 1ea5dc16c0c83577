"""Find at which level, where inside, and why a Large Vision-Language Model goes wrong.

Public names load on first use (PEP 562), so that `import lvlm_interp` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> "module:attribute", or "module" for a public submodule
_PUBLIC = {
    "ContrastPair": "lvlm_interp.data.examples:ContrastPair",
    "Example": "lvlm_interp.data.examples:Example",
    "LVLM": "lvlm_interp.models.lvlm:LVLM",
    "ResultTable": "lvlm_interp.results:ResultTable",
    "Site": "lvlm_interp.sites:Site",
    "TokenMap": "lvlm_interp.tokens:TokenMap",
    "alignment": "lvlm_interp.alignment",
    "attribution": "lvlm_interp.attribution",
    "build_pairs": "lvlm_interp.data.build_pairs:build_pairs",
    "circuits": "lvlm_interp.circuits",
    "collect": "lvlm_interp.activations.memory:collect",
    "evaluation": "lvlm_interp.evaluation",
    "diagnose": "lvlm_interp.diagnose",
    "extract": "lvlm_interp.activations.extract:extract",
    "jobs": "lvlm_interp.jobs",
    "lens": "lvlm_interp.lens",
    "load_examples": "lvlm_interp.data.sources:load_examples",
    "load_model": "lvlm_interp.models.loading:load_model",
    "load_pairs": "lvlm_interp.data.sources:load_pairs",
    "open_image": "lvlm_interp.models.inputs.images:open_image",
    "open_store": "lvlm_interp.activations.store:open_store",
    "organisms": "lvlm_interp.organisms",
    "patching": "lvlm_interp.patching",
    "plotting": "lvlm_interp.plotting",
    "probing": "lvlm_interp.probing",
    "scenes": "lvlm_interp.organisms.pairs",  # so that li.scenes.pairs(...) makes pairs of scenes
    "wrap": "lvlm_interp.models.loading:wrap",
    "write_pairs": "lvlm_interp.data.write:write_pairs",
}

__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}")
    module, _, attribute = _PUBLIC[name].partition(":")
    value = import_module(module)
    if attribute:
        value = getattr(value, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _hint(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, __all__, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
