"""Which engines run a pruned checkpoint, which shapes they take, and the source of each answer.

In: what pruning leaves in the checkpoint (LAYOUTS), its ModelShape, and a degree of tensor
parallelism. Out: an EngineAnswer for each engine. Rows are facts of a day: each names the text that
was read, its version, and the day. `Legal` holds the sizes that an engine takes, for `--legal`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from prunescope.taxonomy.errors import PrunescopeError, nearest
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.shape import LayerShape, ModelShape

# What pruning leaves in a checkpoint. uniform: layers of one width, in whatever number. per-layer:
# layers that differ in heads or channels. missing: layers without their attention or MLP.
# expert-counts: layers that differ in their number of experts. zeros: zeros in dense tensors. 2:4:
# two zeros of every four weights. low-rank: a matrix stored as two. maps: a matrix in the residual
# stream between two bases. run-time: the dense weights, and code that decides for each input.
LAYOUTS = (
    "uniform", "per-layer", "missing", "expert-counts", "zeros", "2:4", "low-rank", "maps",
    "run-time",
)  # fmt: skip
ENGINES = ("transformers", "vllm", "sglang", "tensorrt-llm", "llama.cpp")
NAMES = {
    "transformers": "transformers",
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt-llm": "TensorRT-LLM",
    "llama.cpp": "llama.cpp (GGUF)",
}
NO_KNOBS: Mapping[str, Any] = MappingProxyType({})
CHECKED = "2026-12-02"  # the day on which the texts of all rows were read
_VLLM = "https://github.com/vllm-project/vllm"
_SGLANG = "https://github.com/sgl-project/sglang"
_TENSORRT = "https://github.com/NVIDIA/TensorRT-LLM"
_LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
_TRANSFORMERS = "https://github.com/huggingface/transformers"
_HEADS = ("kv_heads", "heads")
_CHANNELS = ("intermediate", "expert_intermediate", "shared_intermediate")
PADDED = (*_HEADS, *_CHANNELS)  # the sizes that `Legal.padded` changes
_BY_CODE = "with trust_remote_code=True, by the modeling file in its folder"
_NO_CODE = "it runs classes of its own, and none of them does so"


class EngineSource(Struct, frozen=True, kw_only=True):
    """A text that was read: its address, and the release or commit it is of."""

    address: str
    version: str


_SOURCES = {
    "transformers": EngineSource(address=f"{_TRANSFORMERS}/pull/45332", version="5.24.0"),
    "transformers 2:4": EngineSource(address=f"{_TRANSFORMERS}/pull/46342", version="5.24.0"),
    "transformers tp": EngineSource(address=f"{_TRANSFORMERS}/issues/48307", version="2026-08-25"),
    "vllm": EngineSource(
        address=f"{_VLLM}/blob/e06c9ba2a6ea923a84add30f5dafaea126429b81/"
        "vllm/model_executor/models/llama.py",
        version="e06c9ba2",  # older ones read no head_dim, which fewer heads need
    ),
    "vllm per-layer": EngineSource(
        address=f"{_VLLM}/blob/00bd1493b3e82d6c13c68ee8a0e1c5a96707e190/"
        "vllm/model_executor/models/nemotron_nas.py",
        version="00bd1493",
    ),
    "vllm any": EngineSource(address=f"{_VLLM}/pull/36512", version="2026-03-09"),
    "vllm 2:4": EngineSource(address=f"{_VLLM}/pull/36799", version="0.19.1"),
    "sglang": EngineSource(
        address=f"{_SGLANG}/blob/00239548f1cd1a06ca145a5447a86738090a48f1/"
        "python/sglang/srt/models/llama.py",
        version="00239548",
    ),
    "tensorrt-llm": EngineSource(
        address=f"{_TENSORRT}/blob/0193dbd4189221d0fd5e9f20cdb384d3da8dbc24/"
        "tensorrt_llm/_torch/models/modeling_nemotron_nas.py",
        version="0193dbd4",
    ),
    "tensorrt-llm 2:4": EngineSource(
        address="https://nvidia.github.io/TensorRT-LLM/legacy/tensorrt-backend-removal.html",
        version="2026-12-02",
    ),
    "llama.cpp": EngineSource(
        address=f"{_LLAMA_CPP}/blob/069be0ae22f391c64e26e8da4c7da0143ede8cf3/src/models/llama.cpp",
        version="069be0ae",
    ),
}


class EngineAnswer(Struct, frozen=True, kw_only=True):
    """Whether an engine runs a checkpoint, and what became of the work that pruning removed.

    `runs`: False: it does not; True: wherever it runs the dense model. `faster`: whether it does
    less work than for the dense model; None: not known. `reason`: why not, or at what cost.
    """

    engine: str
    runs: bool
    faster: bool | None
    reason: str
    source: str
    version: str
    checked: str = CHECKED


def _row(
    engine: str, *, runs: bool, reason: str = "", faster: bool | None = True, source: str = ""
) -> EngineAnswer:
    """Make a row of the table; `source`: a key of _SOURCES, that of the engine by default."""
    text = _SOURCES[source or engine]
    return EngineAnswer(
        engine=engine,
        runs=runs,
        faster=faster if runs else False,
        reason=reason,
        source=text.address,
        version=text.version,
    )


_PER_LAYER = {
    "transformers": _row(
        "transformers",
        runs=False,
        reason="a class reads `per_layer_config` or lists of sizes only if its own code does so "
        "(Gemma 4 of heads, Gemma 3n of widths; Llama and Qwen3 do not)",
    ),
    "vllm": _row(
        "vllm",
        runs=False,
        reason="its classes read one width for all layers; DeciLM's alone reads a list "
        "(`block_configs`), and a class for any model is not merged",
        source="vllm any",
    ),
    "sglang": _row(
        "sglang", runs=False, reason="its classes read one width and head count for all layers"
    ),
    "tensorrt-llm": _row(
        "tensorrt-llm",
        runs=False,
        reason="only its class of Nemotron-NAS reads sizes of each layer (`block_configs`)",
    ),
    "llama.cpp": _row(
        "llama.cpp",
        runs=False,
        reason="GGUF holds a list of sizes, but the tensors of most models are checked against "
        "those of the first layer",
    ),
}
_SLOW = "it runs the zeros like any other weight"
TABLE: dict[str, dict[str, EngineAnswer]] = {
    "uniform": {name: _row(name, runs=True) for name in ENGINES},
    "per-layer": _PER_LAYER,
    "missing": {
        **_PER_LAYER,
        "transformers": replace(
            _PER_LAYER["transformers"], reason="no class builds a layer without its sublayers"
        ),
    },
    "expert-counts": {
        name: _row(name, runs=False, reason="one number of experts counts for all layers")
        for name in ENGINES
    },
    "zeros": {name: _row(name, runs=True, faster=False, reason=_SLOW) for name in ENGINES},
    "2:4": {
        **{name: _row(name, runs=True, faster=False, reason=_SLOW) for name in ENGINES},
        "transformers": _row(
            "transformers",
            runs=True,
            faster=False,
            reason="it loads dense weights, and packed ones (sparse-24-bitmask) no longer",
            source="transformers 2:4",
        ),
        "vllm": _row(
            "vllm",
            runs=True,
            faster=False,
            reason="it runs dense weights, and has removed its 2:4 kernels",
            source="vllm 2:4",
        ),
        "sglang": _row("sglang", runs=True, faster=None, reason="its 2:4 kernels were not checked"),
        "tensorrt-llm": _row(
            "tensorrt-llm",
            runs=True,
            faster=False,
            reason="it runs dense weights: the backend that built engines with 2:4 kernels is gone",
            source="tensorrt-llm 2:4",
        ),
    },
    "low-rank": {
        name: _row(name, runs=False, reason="no class of its own stores a matrix as two")
        for name in ENGINES
    },
    "maps": {
        name: _row(name, runs=False, reason="no class of its own maps the residual between layers")
        for name in ENGINES
    },
    "run-time": {name: _row(name, runs=False, reason=_NO_CODE) for name in ENGINES},
}


class Legal(Struct, frozen=True, kw_only=True):
    """The sizes that an engine takes at a degree of tensor parallelism.

    Query heads and channels are divided by the degree. KV heads are divided too; where `replicates`
    is True, a degree that is a multiple of their number is taken as well. `head_multiple`: what the
    size of a head is a multiple of. `channel_multiple`: what the channels of a rank are.
    """

    engine: str
    tp: int = 1
    divides: bool = True  # whether heads and channels are divided at all
    replicates: bool = True
    head_multiple: int = 1
    channel_multiple: int = 1
    source: EngineSource

    @property
    def channel_step(self) -> int:
        """What the channels of an MLP must be a multiple of."""
        return self.channel_multiple * (self.tp if self.divides else 1)

    def takes_kv_heads(self, kv_heads: int, heads: int) -> bool:
        """Return whether it takes these numbers of KV heads and query heads."""
        if kv_heads <= 0 or heads % kv_heads:
            return False
        if not self.divides:
            return True
        shared = self.replicates and self.tp % kv_heads == 0
        return heads % self.tp == 0 and (kv_heads % self.tp == 0 or shared)

    def channels(self, wanted: int) -> int:
        """Return the least legal number of channels that is not below `wanted`."""
        return math.ceil(wanted / self.channel_step) * self.channel_step

    def kv_heads(self, wanted: int, group: int) -> int | None:
        """Return the least legal number of KV heads from `wanted` on, with `group` queries each.

        None means that there is none up to a multiple of the degree.
        """
        most = wanted + self.tp * max(1, group)
        counts = range(max(1, wanted), most + 1)
        return next((n for n in counts if self.takes_kv_heads(n, n * group)), None)

    def padded(self, shape: ModelShape) -> ModelShape:
        """Return a model with the least heads and channels from its own on, equal in all layers.

        Raises:
            PrunescopeError: There is no such number of heads.
        """
        sizes = {key: shape.spread(key)[1] for key in PADDED}
        wanted = {key: self.channels(sizes[key]) for key in _CHANNELS if sizes[key]}
        if sizes["kv_heads"]:
            group = sizes["heads"] // sizes["kv_heads"]
            kv_heads = self.kv_heads(sizes["kv_heads"], group)
            if kv_heads is None:
                raise PrunescopeError(
                    f"{NAMES[self.engine]} takes no number of heads from {sizes['kv_heads']} KV "
                    f"heads on at tensor parallelism {self.tp}",
                    hint="use a smaller --legal-tp, or a method that leaves heads as they are",
                )
            wanted |= {"kv_heads": kv_heads, "heads": kv_heads * group}
        return shape.map_layers(
            lambda layer: layer.change(**{k: n for k, n in wanted.items() if layer.get(k)})
        )

    def problems(self, layer: LayerShape) -> list[str]:
        """Name each size of a layer that the engine does not take."""
        problems = []
        degree = f"tensor parallelism {self.tp}"
        if layer.attention_kind == "usual" and layer.kv_heads:
            if not self.takes_kv_heads(layer.kv_heads, layer.heads):
                problems.append(
                    f"{layer.heads} query and {layer.kv_heads} KV heads cannot be divided by "
                    f"{degree}"
                )
            if layer.head_dim % self.head_multiple:
                problems.append(
                    f"heads of {layer.head_dim} features are no multiple of {self.head_multiple}"
                )
        if layer.mlp_kind == "usual":
            sizes = (layer.intermediate, layer.expert_intermediate)
            problems += [
                f"{size} channels are no multiple of {self.channel_step}"
                for size in sizes
                if size % self.channel_step
            ]
        return problems


# llama.cpp splits a matrix by rows wherever they are; the blocks of its quantised formats have 32
# weights of a row at least (gguf.GGML_QUANT_SIZES), and rows of `down` are as long as the MLP is
# wide.
_RULES = {
    "transformers": Legal(
        engine="transformers", replicates=False, source=_SOURCES["transformers tp"]
    ),
    "vllm": Legal(engine="vllm", source=_SOURCES["vllm"]),
    "sglang": Legal(engine="sglang", source=_SOURCES["sglang"]),
    "tensorrt-llm": Legal(
        engine="tensorrt-llm",
        head_multiple=8,
        source=EngineSource(address=f"{_TENSORRT}/issues/679", version="2023-12-17"),
    ),
    "llama.cpp": Legal(
        engine="llama.cpp",
        divides=False,
        channel_multiple=32,
        source=EngineSource(address="https://pypi.org/project/gguf/0.19.0/", version="0.19.0"),
    ),
}


def check_engine(name: str) -> str:
    """Return the id of an engine.

    Raises:
        PrunescopeError: There is no such engine in the table.
    """
    wanted = name.lower().replace("_", "-")
    if wanted not in ENGINES:
        raise PrunescopeError(
            f"no engine is called {name!r}", hint=f"nearest: {nearest(wanted, ENGINES)}"
        )
    return wanted


def legal_sizes(engine: str, tp: int = 1) -> Legal:
    """Return the sizes that an engine takes at a degree of tensor parallelism.

    Raises:
        PrunescopeError: The engine is unknown.
    """
    return replace(_RULES[check_engine(engine)], tp=tp)


def layouts_of(
    families: Iterable[Family],
    shape: ModelShape,
    knobs: Mapping[str, Any] = NO_KNOBS,
    *,
    dense: ModelShape | None = None,
) -> tuple[str, ...]:
    """Return what pruning by some families leaves in a checkpoint of a shape, of LAYOUTS.

    Args:
        families: The families that were applied; none for a checkpoint whose shape says all.
        shape: The dimensions after pruning.
        knobs: The options of the families.
        dense: The model before pruning. What it has by itself, as a Nemotron-H has layers of one
            sublayer, is no work of pruning. None: not known.

    Returns:
        At least one layout; "uniform" only alone.
    """
    layouts = {_layout_of(family, knobs) for family in families} - {""}
    layouts |= _layouts_of_shape(shape) - (_layouts_of_shape(dense) if dense else set())
    return tuple(name for name in LAYOUTS if name in layouts) or ("uniform",)


def _layouts_of_shape(shape: ModelShape) -> set[str]:
    """Return the layouts that the dimensions of a model show."""
    layouts = set()
    layers = set(shape.layer_shapes)
    if any(layer.ranks for layer in layers) or shape.ranks:
        layouts.add("low-rank")
    kinds = {kind for layer in layers for kind in (layer.attention_kind, layer.mlp_kind)}
    if "none" in kinds:
        layouts.add("missing")
    whole = [layer for layer in layers if "none" not in (layer.attention_kind, layer.mlp_kind)]
    if len({layer.experts for layer in whole if layer.experts}) > 1:
        layouts.add("expert-counts")
    if any(
        len({getattr(layer, key) for layer in whole if getattr(layer, key)}) > 1
        for key in ("heads", "kv_heads", "intermediate", "expert_intermediate")
    ):
        layouts.add("per-layer")
    return layouts


def _layout_of(family: Family, knobs: Mapping[str, Any]) -> str:
    """Return what a family leaves that the shape does not show; "" for nothing."""
    if family.is_dynamic:
        return "run-time"
    if "ranks" in family.cuts:
        return "low-rank"
    if family.zeroes_weights:
        return "2:4" if family.without_sparse_units else "zeros"
    if "stream" in family.cuts and knobs.get("junctions", "different") == "different":
        return "maps"
    return "missing" if family.skips_layers and knobs.get("unit", "layer") != "layer" else ""


def engine_answers(
    layouts: Sequence[str], shape: ModelShape | None = None, tp: int = 1, *, held: str = ""
) -> list[EngineAnswer]:
    """Return whether each engine runs a checkpoint.

    Args:
        layouts: What pruning left in it, as `layouts_of` returns it.
        shape: Its dimensions, which are compared with those that an engine takes; None: no
            dimension is looked at.
        tp: The degree of tensor parallelism.
        held: How transformers was found to hold this very checkpoint: "code" by a modeling file of
            its own, else by a class; "": not tried, so that the table answers.

    Returns:
        An answer for each of ENGINES. Of several reasons not to run it, the first counts.
    """
    answers = []
    for engine in ENGINES:
        rows = [TABLE[layout][engine] for layout in layouts]
        if held and engine == "transformers":
            rows = [row for row in rows if row.runs] or [TABLE["uniform"][engine]]
            if held == "code":
                rows = [replace(row, reason=_BY_CODE) for row in rows]
        refused = next((row for row in rows if not row.runs), None)
        slowed = next((row for row in rows if row.faster is not True), rows[0])
        answer = refused or slowed
        problems = [] if shape is None else _size_problems(legal_sizes(engine, tp), shape)
        if answer.runs and problems:
            rule = _RULES[engine]
            answer = replace(
                answer,
                runs=False,
                faster=False,
                reason=problems[0],
                source=rule.source.address,
                version=rule.source.version,
            )
        answers.append(answer)
    return answers


def _size_problems(legal: Legal, shape: ModelShape) -> list[str]:
    """Name the sizes of a model that an engine does not take, each once."""
    layers = dict.fromkeys(shape.layer(number) for number in range(shape.layers))
    return list(dict.fromkeys(text for layer in layers for text in legal.problems(layer)))
