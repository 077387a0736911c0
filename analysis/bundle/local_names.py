"""Names of a bundle's traces that may be the authors' own: classes of modules, ops, Triton kernels.

In: the zip. Out: the names, by what they are of. An anonymous bundle renames module paths and the
namespaces of ops, and keeps these, which roles and kinds are read from; nobody but the authors
knows whether one of them tells who they are.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from pathlib import Path

from prunescope.taxonomy.architecture_table import BY_ID

_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_CLASS = re.compile(r"nn\.Module: ([A-Za-z_]\w*?)(?:_\d+)?")
_NUMBERED_OP = re.compile(r"op\d+::(\w+)")
_TRITON = re.compile(r"(?!triton_(?:poi|per|red|tem|for|mm|bmm)_)(?:triton_|_)?\w+_kernel\w*")
_OF_TORCH = frozenset({
    "Linear", "Embedding", "LayerNorm", "RMSNorm", "ModuleList", "Sequential", "Dropout", "SiLU",
    "GELU", "ReLU", "Softmax", "Conv1d", "Conv2d", "Identity", "MultiheadAttention", "Module",
    "Transformer", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoder",
    "GELUActivation", "NewGELUActivation", "SiLUActivation",
})  # fmt: skip
_MODELS = tuple(re.sub(r"\W|_", "", one).lower() for one in BY_ID)

# What transformers appends to the name of a model for the class that is loaded.
_LOADED = re.compile(r"(?:text)?(?:model|lmheadmodel|for[a-z]+)")


def is_public_architecture(name: str | None) -> bool:
    """Whether the class of a whole model is one of a public library: `LlamaForCausalLM`."""
    lower = (name or "").lower()
    public = (lower[len(one) :] for one in _MODELS if lower.startswith(one))
    return name in _OF_TORCH or any(map(_LOADED.fullmatch, public))


def local_names(bundle: Path) -> dict[str, list[str]]:
    """Kind of name -> those that no public library is known to have, in order."""
    texts: set[str] = set()
    with zipfile.ZipFile(bundle) as archive:
        for name in archive.namelist():
            if name.startswith("runs/") and name.endswith(".gz"):
                strings = set(_STRING.findall(gzip.decompress(archive.read(name))))
                texts |= {json.loads(one) for one in strings}
    classes = {m[1] for one in texts if (m := _CLASS.fullmatch(one))} - _OF_TORCH
    found = {
        "module classes": {name for name in classes if not name.lower().startswith(_MODELS)},
        "ops": {m[1] for one in texts if (m := _NUMBERED_OP.fullmatch(one))},
        "kernels": {one for one in texts if _TRITON.fullmatch(one)},
    }
    return {kind: sorted(names) for kind, names in found.items() if names}
