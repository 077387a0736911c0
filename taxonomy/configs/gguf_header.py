"""The header of a GGUF file, checked against the bytes that are there.

In: a .gguf file, untrusted. Out: how many numbers its tensors hold, and their shapes; what it says
of the model, as the config of a Hugging Face model. The libraries that read it afterwards believe
every length in it. Layout: github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any

from prunescope.taxonomy.configs.architecture_table import GGUF_TYPES
from prunescope.taxonomy.configs.gguf_hybrids import hybrid_keys, layers_of
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import MAX_LAYERS

_VERSIONS = (2, 3)
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by type
_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q",
          12: "d"}  # fmt: skip
_WHOLE = (4, 5)  # types of whole numbers, 32 bits
_TEXT, _LIST = 8, 9
_LONGEST = 256  # bytes of a text that are kept
_PLAIN = (None, 0, 1, 32)  # file types of weights in fp32, fp16 and bf16
_KEYS = {
    "hidden_size": "embedding_length", "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length", "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv", "head_dim": "attention.key_length",
    "sliding_window": "attention.sliding_window", "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
}  # fmt: skip
_LEAST_BITS = 1.5  # of a weight, in the smallest of the formats
_MOST_DIMS, _DEEPEST = 4, 4


def gguf_config(path: Path) -> dict[str, Any]:
    """Read the dimensions in the header of a GGUF file, by the names of a Hugging Face config.

    Raises:
        PrunescopeError: The file is damaged, or its architecture's names are not known.
    """
    header = _read(path)
    kind = str(header.values.get("general.architecture"))
    if kind not in GGUF_TYPES:
        raise PrunescopeError(
            f"{path.name} is of the architecture {kind[:40]!r}, of which headers are not read",
            hint=f"give its config.json; read are {', '.join(GGUF_TYPES)}",
        )
    config: dict[str, Any] = {"model_type": GGUF_TYPES[kind]}
    for name, key in _KEYS.items():
        value = header.values.get(f"{kind}.{key}")
        if value is not None:
            config[name] = value
    config |= hybrid_keys(kind, GGUF_TYPES[kind], header.values, header.tensors)
    table = header.tensors.get("token_embd.weight", ())
    if len(table) == 2:
        config["vocab_size"] = table[1]
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    if any(name.endswith("attn_q.bias") for name in header.tensors):
        config["attention_bias"] = True
    if header.values.get("general.file_type") not in _PLAIN:
        config["quantization_config"] = {"quant_method": "gguf"}
    return {name: value for name, value in config.items() if value is not None}


# Names of matrices and norms of a layer, as Hugging Face has them.
_TENSORS = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.router", "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj", "ffn_down_exps": "mlp.experts.down_proj",
}  # fmt: skip


# Stored beside the parameters: angles of positions, and what balances the choice of experts.
_NO_PARAMETERS = ("rope_freqs", "rope_factors_long", "rope_factors_short", "exp_probs_b")


def gguf_tensors(path: Path) -> tuple[dict[str, tuple[int, ...]], int]:
    """Read the shapes of the tensors by their Hugging Face names, the slowest dimension first.

    Returns:
        The shapes of the tensors whose names are known, and how many parameters all tensors hold
        together; 0 where the file lacks some layers, as a part of a split one does.

    Raises:
        PrunescopeError: The file is damaged.
    """
    header = _read(path)
    count = header.values.get(f"{header.values.get('general.architecture')}.block_count")
    layers = layers_of(header.tensors, count if type(count) is int else 0)
    numbers = sum(
        math.prod(shape)
        for name, shape in header.tensors.items()
        if not any(part in _NO_PARAMETERS for part in name.split("."))
    )
    shapes = {}
    for name, shape in header.tensors.items():
        part, _, number_and_rest = name.partition(".")
        number, _, suffix = number_and_rest.partition(".")
        leaf, _, kind = suffix.rpartition(".")
        if name == "token_embd.weight":
            shapes["model.embed_tokens.weight"] = shape[::-1]
        elif part == "blk" and leaf in _TENSORS:
            shapes[f"model.layers.{number}.{_TENSORS[leaf]}.{kind}"] = shape[::-1]
    return shapes, numbers if layers and all(layers) else 0


def stored_elements(path: Path) -> int:
    """Count the numbers of all tensors together.

    Raises:
        PrunescopeError: A length leads out of the file, or the tensors cannot fit in it.
    """
    size = path.stat().st_size
    total = sum(math.prod(shape) for shape in _read(path).tensors.values())
    if total * _LEAST_BITS / 8 > size:
        raise PrunescopeError(
            f"{path.name} claims {total:,} weights, and is too small for them",
            hint="download it again: the file is cut off, or not what it says",
        )
    return total


def _read(path: Path) -> _Header:
    """Read the header of a GGUF file. Raise PrunescopeError if it is damaged."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            header = _Header(data, path.stat().st_size)
            header.read()
            return header
    except (ValueError, struct.error) as error:
        raise PrunescopeError(
            f"{path.name} is not a readable GGUF file ({error})", hint="download it again"
        ) from None


class _Header:
    """A place in the file that moves forward, never past the end.

    `values`: the numbers and texts by key; `tensors`: shapes, the fastest dimension first.
    """

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.at = data, size, 0
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, tuple[int, ...]] = {}

    def read(self) -> None:
        """Read all values and tensors. Raise ValueError if the header is damaged."""
        if self.data[:4] != b"GGUF":
            raise ValueError("it does not begin with GGUF")
        self.at = 4
        version, tensors, keys = self.take("<IQQ")
        if version not in _VERSIONS:
            raise ValueError(f"version {version} is not known")
        for _ in range(self.number(keys, least=13)):
            name = self.text()
            self.values[name] = self.value(self.take("<I")[0])
        for number in range(self.number(tensors, least=32)):
            self.tensor(number)

    def tensor(self, number: int) -> None:
        """Read the name and the shape of one tensor."""
        name = self.text()
        (dims,) = self.take("<I")
        if dims > _MOST_DIMS:
            raise ValueError(f"a tensor of {dims} dimensions")
        shape = self.take(f"<{dims}Q")
        self.take("<IQ")
        # Two tensors of one name count twice, because the number of weights is checked.
        self.tensors[name if name not in self.tensors else f"{name} {number}"] = shape

    def value(self, kind: int, depth: int = 0) -> Any:
        """Read one number or text, or a list of whole numbers of layers.

        Other lists are skipped, and None stands for them.
        """
        if kind == _TEXT:
            return self.text()
        elif kind == _LIST and depth < _DEEPEST:
            inner, count = self.take("<IQ")
            if inner in _WHOLE and count <= MAX_LAYERS:
                return list(self.take(f"<{count}{_FORMS[inner]}"))
            if inner in _SCALARS:
                self.skip(count * _SCALARS[inner])
                return None
            for _ in range(self.number(count, least=8)):
                self.value(inner, depth + 1)
        elif kind in _SCALARS:
            return self.take(f"<{_FORMS[kind]}")[0]
        else:
            raise ValueError(f"a value of unknown type {kind}")
        return None

    def text(self) -> str:
        (length,) = self.take("<Q")
        start = self.at
        self.skip(length)
        return bytes(self.data[start : min(self.at, start + _LONGEST)]).decode("utf-8", "replace")

    def number(self, count: int, *, least: int) -> int:
        """Return a count of things of `least` bytes each, if the bytes ahead can hold them."""
        if count * least > self.size - self.at:
            raise ValueError(f"{count} entries in {self.size - self.at} bytes")
        return count

    def take(self, form: str) -> tuple[int, ...]:
        values: tuple[int, ...] = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return values

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > self.size:
            raise ValueError("it ends before its header does")
