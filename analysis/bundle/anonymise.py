"""Runs fit for double-blind review: an allow-list of fields, and strings that name nobody.

In: run manifests and traces. Out: the same with what a report needs, and nothing that names a user,
a host, a path, an address or a token. Numbers stay as they are.
"""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from prunescope.analysis.bundle.secrets import cleared, names_here, names_in
from prunescope.analysis.bundle.trim import Words
from prunescope.analysis.ops.call import MODELS
from prunescope.analysis.ops.kernel_kinds import OP_KINDS
from prunescope.analysis.trace.unpack import unpacked
from prunescope.taxonomy.arguments import number
from prunescope.taxonomy.configs.architecture_table import BY_ID
from prunescope.taxonomy.families import families
from prunescope.taxonomy.formats import changed, plain, read
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.method_names import method_parts
from prunescope.taxonomy.presets import preset_names
from prunescope.taxonomy.roles import locate
from prunescope.taxonomy.runs.run import PhaseRun, Placement, Run
from prunescope.taxonomy.runs.run_blocks import DeviceEntry, ModelEntry, Pruning
from prunescope.taxonomy.runs.run_quality import RANDOM_IDS, Quality, TextSource

T = TypeVar("T")
_BLOCK, _OVERLAP = 4 << 20, 4096
# Fields whose text may stay if it looks like a plain value and holds nothing suspicious.
_TEXT_FIELDS = frozenset({
    "reasons", "disturbed",
    "variant", "dtype", "kind", "isa", "vendor", "gcnArchName", "logits", "cache", "attention",
    "mode", "interleaved", "trace", "sha256", "eager_trace", "selection", "rounding", "unit",
    "align", "role", "statistic", "architecture", "architectures", "model_type", "hidden_act",
    "hidden_activation", "torch_dtype", "rope_type", "attn_implementation", "junctions", "blocks",
    "policy", "layer_types", "train_sha256", "eval_sha256", "weights_sha256",
    "weights_fingerprint", "target", "scoring", "phase",
})  # fmt: skip
_DROPPED = frozenset({"notes", "note", "text", "texts", "path", "file", "error", "uuid", "serial"})
_PLAIN = lazy_pattern(r"[\w .,:+()@/-]{1,120}")
_KEY = lazy_pattern(r"[A-Za-z][A-Za-z0-9_.-]{0,60}")
_VERSION = lazy_pattern(r"\d+(?:\.\w+)*(?:[+-][\w.]{1,20})?")
_VERSIONS = ("python", "torch", "transformers", "prunescope", "toolkit", "triton", "driver")
_SYSTEM = lazy_pattern(r"(?:Linux|Darwin|Windows) [\w-]{2,10}")
# Hub accounts that publish models for everybody.
_PUBLIC = frozenset({
    "meta-llama", "qwen", "mistralai", "google", "microsoft", "eleutherai", "huggingfacetb",
    "facebook", "openai-community", "openai", "allenai", "ibm-granite", "deepseek-ai", "tiiuae",
    "bigscience", "stabilityai", "tinyllama", "apple", "nvidia",
})  # fmt: skip
_KNOWN_MODEL = lazy_pattern(
    r"(?i)(?:tiny-?)?(?:llama|smollm|qwen|mi[sx]tral|gemma|phi|gpt2|gpt-oss|pythia|olmo|granite"
    r"|falcon|opt|bloom|deepseek|stablelm)[\w.-]{0,40}"
)
_SCOPE = lazy_pattern(r"[A-Za-z_]\w*(?:\.\w+)*")
_OURS = lazy_pattern(r"prunescope\.(?:phase|step#(?:\d+|warmup))|ProfilerStep#\d+")
_MODULE = lazy_pattern(r"nn\.Module: \w+")
_COMPONENTS = frozenset({
    "model", "language_model", "transformer", "gpt_neox", "decoder", "encoder", "backbone",
    "base_model", "text_model", "layers", "h", "blocks", "block", "layer", "self_attn", "attn",
    "attention", "mlp", "feed_forward", "ffn", "moe", "block_sparse_moe", "experts", "mixer",
    "mamba", "linear_attn", "short_conv", "ff", "residual", "router", "estimator", "predictor",
    "first", "second", "norm", "weight", "bias", "wrapped", "module",
})  # fmt: skip
_OP = lazy_pattern(r"(?P<space>[A-Za-z_]\w*)::(?P<own>[\w.]+)")
# Namespaces of operators that torch and public libraries register.
_LIBRARIES = frozenset({
    "aten", "prim", "prims", "c10", "c10d", "c10d_functional", "_c10d_functional", "autograd",
    "cuda", "symm_mem", "torch", "torchvision", "torchaudio", "torchao", "quantized",
    "quantized_decomposed", "mkldnn", "mkldnn_prepacked", "onednn", "xnnpack", "prepacked",
    "inductor", "inductor_prims", "higher_order", "rngprims", "triton", "vllm", "_C",
    "_C_cache_ops", "_C_custom_ar", "_moe_C", "_vllm_fa2_C", "_vllm_fa3_C", "_rocm_C",
    "sgl_kernel", "sglang", "flash_attn", "flash_attn_3", "flashinfer", "xformers",
    "xformers_flash", "aiter", "bitsandbytes", "transformer_engine", "tex", "apex", "deep_gemm",
    "deep_ep", "mamba_ssm", "causal_conv1d", "fbgemm", "torch_scatter", "torch_sparse",
    "torch_cluster", "trtllm", "tensorrt", "transformers", "rocm_aiter", "prunescope", "mps",
    "profiler", "static_runtime", "dist_autograd",
})  # fmt: skip
_TYPE = lazy_pattern(r"[\w:<>, ]*")
_VALUE = lazy_pattern(r"[\w\s\[\](),.+:-]*")
_WORDS = frozenset({"trace", "analyze", "demo", "both", "prefill", "decode", "last", "all", "auto",
                    "cpu", "cuda", "eager", "compile", "graph", "sdpa", "random", "importance",
                    "calibrated", "greedy", "alternating", "blocks", "alone"})  # fmt: skip


class Scrubber(Words):
    """A scrubber of the strings of runs and traces, which then name no people, hosts or paths.

    `names` are the names to remove, in lower case.
    """

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = frozenset(names)
        self._parts: dict[str, str] = {}
        self._spaces: dict[str, str] = {}
        self._inputs: dict[tuple[str, bytes], Any] = {}

    def text(self, text: str) -> str:
        """Return the text with everything suspicious replaced."""
        if text not in self._known:
            self._known[text] = cleared(text, self.names)
        return self._known[text]

    def kernel(self, name: str) -> str:
        """Return the name of a kernel, a launch, an op or a device without what is suspicious.

        The namespace of an op of no known library is replaced by a number.
        """
        op = _OP.fullmatch(name)
        if op is None or op["space"] in _LIBRARIES | _known_namespaces():
            return self.text(name)
        space = self._spaces.setdefault(op["space"], f"op{len(self._spaces) + 1}")
        return self.text(f"{space}::{op['own']}")

    def annotation(self, name: str) -> str | None:
        """Return the name of an annotation of prunescope, a profiler step or a module path.

        Returns:
            The name; None for any other annotation, which is dropped.
        """
        if _OURS.fullmatch(name):
            return name
        if _MODULE.fullmatch(name):
            return self.text(name)
        return self.path(name) if _SCOPE.fullmatch(name) else None

    def path(self, path: str) -> str:
        """Return a module path, whose components of no known library are replaced by numbers."""
        return ".".join(self._component(part) for part in path.split("."))

    def _component(self, part: str) -> str:
        known = part.isdigit() or part in _COMPONENTS or locate(part).role != "unknown"
        if known and self.text(part) == part:
            return part
        return self._parts.setdefault(part, f"module{len(self._parts)}")

    def inputs(self, kind: str, raw: bytes) -> Any:
        """Return shapes as numbers, and dtypes and values that look like such."""
        if (kind, raw) not in self._inputs:
            self._inputs[kind, raw] = self._plain_inputs(kind, raw)
        return self._inputs[kind, raw]

    def _plain_inputs(self, kind: str, raw: bytes) -> Any:
        try:
            plain = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return []
        if kind in ("dims", "strides"):
            return _numbers(plain)
        form = _TYPE if kind == "types" else _VALUE
        values = plain if isinstance(plain, list) else []
        return [
            v if isinstance(v, str) and form.fullmatch(v) and self.text(v) == v else ""
            for v in values
        ]

    def run(self, run: Run) -> Run:
        """Return the manifest with the fields of the allow-list.

        The caller replaces `BaselineRef` and `sha256`.
        """
        phases = {
            name: self._phase(phase)
            for name, phase in run.phases.items()
            if _KEY.fullmatch(name) and self.text(name) == name
        }
        kept = ("dtype", "seeds", "weight_bytes", "parameters", "layer_map", "variant")
        scrubbed = msgspec.structs.replace(
            run,
            **{name: self.value(name, getattr(run, name)) for name in kept},
            phases=phases,
            model=read(ModelEntry, self._model(plain(run.model))),
            device=read(DeviceEntry, self._device(plain(run.device))),
            inputs=self.block("inputs", run.inputs),
            timing=self.block("timing", run.timing),
            versions=self._versions(run.versions),
            argv=[word if self._is_option(word) else "<removed>" for word in run.argv],
            pruning=self._pruning(run.pruning),
            census=self.block("census", run.census),
            tool=self.text(run.tool),
            quality=self._quality(run.quality),
            routing={name: counts for name, counts in run.routing.items() if name in phases},
            distinct_experts={
                n: counts for n, counts in run.distinct_experts.items() if n in phases
            },
        )
        unknown = {k: v for k, v in (run.as_read or {}).items() if k not in run.__struct_fields__}
        return read(Run, {**plain(scrubbed), **self.value("extra", unknown)})

    def _phase(self, phase: PhaseRun) -> PhaseRun:
        """Return a phase with its known fields. A text that is dropped becomes an empty one."""
        kept: dict[str, Any] = {}
        for name in phase.__struct_fields__:
            field = getattr(phase, name)
            value = self.value(name, field)
            kept[name] = "" if value is None and isinstance(field, str) else value
        return PhaseRun(**kept)

    def value(self, key: str, value: Any) -> Any:
        """Return numbers as they are, and text if its field may have one; drop everything else."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._string(key, value)
        if isinstance(value, list):
            kept = [self.value(key, v) for v in value]
            return [v for v, old in zip(kept, value, strict=True) if v is not None or old is None]
        if isinstance(value, Placement):
            return msgspec.structs.replace(
                value,
                reasons=self.value("reasons", value.reasons),
                steps_disturbed=self.value("reasons", value.steps_disturbed),
            )
        if not isinstance(value, dict):
            return None
        return {
            self._key(k): v
            for k, old in value.items()
            if isinstance(k, str)
            and self._allowed(k)
            and ((v := self.value(k, old)) is not None or old is None)
        }

    def _string(self, key: str, value: str) -> str | None:
        if key == "name":  # the name of a matrix of the weight statistics
            return self.path(value) if _SCOPE.fullmatch(value) else None
        if key not in _TEXT_FIELDS or not _PLAIN.fullmatch(value):
            return None
        return value if self.text(value) == value else None

    def _allowed(self, key: str) -> bool:
        return key not in _DROPPED and bool(_KEY.fullmatch(key)) and self.text(key) == key

    def _key(self, key: str) -> str:
        """Return a key, which may be a module path in the counts."""
        return self.path(key) if "." in key else key

    def _model(self, model: dict[str, Any]) -> dict[str, Any]:
        kept = {k: self.value(k, model.get(k)) for k in ("architecture", "config", "shape")}
        if not is_public_architecture(kept["architecture"]):
            kept["architecture"] = None  # a class of the authors' own may be named after them
        named = str(model.get("id") or "")
        if named == model.get("architecture") != kept["architecture"]:
            named = ""
        owner, _, name = named.rpartition("/")
        public = (
            owner.lower() in _PUBLIC
            or not owner
            and (named in preset_names() or bool(_KNOWN_MODEL.fullmatch(name)))
        )
        if public and self.text(named) == named:
            return {"id": named, **kept}
        return {"id": kept["architecture"] or "model", **kept}

    def _device(self, device: dict[str, Any]) -> dict[str, Any]:
        kept: dict[str, Any] = self.value("device", device)
        name = device.get("name")
        if isinstance(name, str) and re.fullmatch(r"[\w .()@/-]{1,80}", name):
            kept["name"] = self.text(name)
        return kept

    def _versions(self, versions: dict[str, str]) -> dict[str, str]:
        kept = {
            k: v
            for k, v in versions.items()
            if k in _VERSIONS and isinstance(v, str) and _VERSION.fullmatch(v) and self.text(v) == v
        }
        system = versions.get("system", "")
        return {**kept, "system": system} if _SYSTEM.fullmatch(system) else kept

    def _pruning(self, pruning: Pruning | None) -> Pruning | None:
        if pruning is None:
            return None
        kept = self.value("pruning", plain(pruning))
        method = pruning.method if names_only_families(pruning.method) else "custom"
        shown = pruning.display_name
        named = {"display_name": shown} if self.may_show(shown) else {}
        return read(Pruning, {"method": method, **kept, **named})

    def block(self, key: str, block: T) -> T:
        """Return a block of a manifest with the fields of the allow-list; None for None."""
        return block and read(type(block), self.value(key, plain(block)))

    def _quality(self, quality: Quality | None) -> Quality | None:
        """Return the losses of a run, with that they were read on random token ids, if so."""
        kept = self.block("quality", quality)
        is_random = quality is not None and quality.text and quality.text.source == RANDOM_IDS
        return changed(kept, text=TextSource(source=RANDOM_IDS)) if kept and is_random else kept

    def may_show(self, name: str | None) -> bool:
        """Return whether a display name, which its authors gave for print, names nobody."""
        return bool(name) and bool(_PLAIN.fullmatch(name or "")) and self.text(name or "") == name

    def _is_option(self, word: str) -> bool:
        option, _, value = word.partition("=") if word.startswith("--") else ("", "", word)
        if option and not re.fullmatch(r"--[a-z-]+", option):
            return False
        known = not value or value in {*_WORDS, *preset_names()} or names_only_families(value)
        return known or bool(re.fullmatch(r"-?\d+(?:\.\d+)?", value))


@cache
def _known_namespaces() -> frozenset[str]:
    """Return the namespaces of the operators that the analysis knows by name."""
    return frozenset(name.partition("::")[0] for name in {**MODELS, **OP_KINDS} if "::" in name)


def names_only_families(method: Any) -> bool:
    """Return whether a method names only families and their sparsities."""
    parts = method_parts(method) if isinstance(method, str) else []
    shares = [number(own) for _, own in parts if own is not None]
    ids = {family.id for family in families()}
    return bool(parts) and None not in shares and ids.issuperset(name for name, _ in parts)


def _numbers(plain: Any) -> Any:
    """Return nested lists of integers, with an empty list for everything else."""
    if isinstance(plain, int) and not isinstance(plain, bool):
        return plain
    return [_numbers(p) for p in plain] if isinstance(plain, list) else []


def names_of(files: Iterable[Path]) -> set[str]:
    """Return names of users and hosts in the files, compressed or not, and of this process."""
    names = names_here()
    for path in files:
        with path.open("rb") as file:
            stream, before = unpacked(path, file), b""
            while block := stream.read(_BLOCK):
                names |= names_in((before + block).decode("utf-8", "replace"))
                before = block[-_OVERLAP:]
    return names


_STRING = lazy_pattern(rb'"(?:[^"\\]|\\.)*"')
_CLASS = lazy_pattern(r"nn\.Module: ([A-Za-z_]\w*?)(?:_\d+)?")
_NUMBERED_OP = lazy_pattern(r"op\d+::(\w+)")
_TRITON = lazy_pattern(r"(?!triton_(?:poi|per|red|tem|for|mm|bmm)_)(?:triton_|_)?\w+_kernel\w*")
_TORCH_CLASSES = frozenset({
    "Linear", "Embedding", "LayerNorm", "RMSNorm", "ModuleList", "Sequential", "Dropout", "SiLU",
    "GELU", "ReLU", "Softmax", "Conv1d", "Conv2d", "Identity", "MultiheadAttention", "Module",
    "Transformer", "TransformerEncoder", "TransformerEncoderLayer", "TransformerDecoder",
    "GELUActivation", "NewGELUActivation", "SiLUActivation",
})  # fmt: skip
_MODEL_PREFIXES = tuple(re.sub(r"\W|_", "", name).lower() for name in BY_ID)

# What transformers appends to the name of a model in the name of its class.
_LOADED = lazy_pattern(r"(?:text)?(?:model|lmheadmodel|for[a-z]+)")


def is_public_architecture(name: str | None) -> bool:
    """Return whether a model's class is one of a public library, as `LlamaForCausalLM` is."""
    lower = (name or "").lower()
    public = (lower[len(prefix) :] for prefix in _MODEL_PREFIXES if lower.startswith(prefix))
    return name in _TORCH_CLASSES or any(map(_LOADED.fullmatch, public))


def trace_strings(data: bytes) -> set[str]:
    """Return the strings of a gzipped trace. They are few, and each occurs many times."""
    return {json.loads(text) for text in set(_STRING.findall(gzip.decompress(data)))}


def local_names(bundle: Path) -> dict[str, list[str]]:
    """Return names in a bundle that may be the authors' own: those of no known public library.

    An anonymous bundle keeps them, as roles and kinds are read from them.

    Limitations: only the authors know whether a name tells who they are.

    Args:
        bundle: The bundle, a zip.

    Returns:
        The sorted names by kind: classes of modules, ops, and Triton kernels.
    """
    texts: set[str] = set()
    with zipfile.ZipFile(bundle) as archive:
        for name in archive.namelist():
            if name.startswith("runs/") and name.endswith(".gz"):
                texts |= trace_strings(archive.read(name))
    classes = {m[1] for text in texts if (m := _CLASS.fullmatch(text))} - _TORCH_CLASSES
    local = {
        "module classes": {
            name for name in classes if not name.lower().startswith(_MODEL_PREFIXES)
        },
        "ops": {m[1] for text in texts if (m := _NUMBERED_OP.fullmatch(text))},
        "kernels": {text for text in texts if _TRITON.fullmatch(text)},
    }
    return {kind: sorted(names) for kind, names in local.items() if names}
