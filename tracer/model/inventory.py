"""The module tree of a model, without weights, as an Inventory.

In: a config (a dict), or a model in memory. Out: its modules with the shapes of their weights, and
how often a token passes each of them, which a forward on the meta device shows. Trees are built by
the classes of transformers alone: no code of a checkpoint runs.
"""

from __future__ import annotations

import contextlib
import inspect
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import CONFIG_MAPPING, PreTrainedModel, masking_utils
from transformers.models.auto import modeling_auto

from prunescope.taxonomy.formats import MAX_LAYERS
from prunescope.taxonomy.inventory import Inventory, StoredModule, StoredWeight

TOKENS = 64  # of the forward that is followed
# A config is anybody's: its class may refuse it in any of these ways, and an op may ask for values.
_REFUSALS = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, OSError,
    RuntimeError, ImportError, StrictDataclassError,
)  # fmt: skip
_NOT_SHAPES = ("auto_map", "dtype", "quantization_config")  # keys that change no shape
# The heads that a config may stand for, in the order in which they are tried; a tower has none.
_HEADS = (
    "FOR_CAUSAL_LM", "FOR_IMAGE_TEXT_TO_TEXT", "FOR_SEQ_TO_SEQ_CAUSAL_LM", "FOR_SPEECH_SEQ_2_SEQ",
    "FOR_MASKED_LM", "FOR_IMAGE_CLASSIFICATION", "",
)  # fmt: skip
_SIZES = (
    "head_dim", "num_heads", "num_attention_heads", "n_heads", "n_head", "num_key_value_heads",
    "num_kv_heads", "num_key_value_groups", "qk_head_dim", "v_head_dim", "sliding_window",
    "chunk_size", "ssm_state_size", "n_groups", "top_k", "num_experts_per_tok", "moe_top_k",
    "num_experts", "index_topk", "nope_head_dim", "attention_head_size", "embed_dim",
)  # fmt: skip


def build_inventory(config: Mapping[str, Any]) -> Inventory | None:
    """Build the tree that a config describes on the meta device, and list it.

    None if transformers does not know the model, or cannot build it, and of sizes that no model
    has: too many layers, or a matrix without numbers. None too of a tower that no forward can be
    followed through: how many tokens it sees is then not known.
    """
    with _quiet():
        model = _tree(config)
        if model is None or any(0 in weight.shape for weight in model.parameters()):
            return None
        tree = read_tree(model)
        is_tower = _main_input(model) != "input_ids"
        is_tower |= "input_ids" not in inspect.signature(model.forward).parameters
        is_tower &= tree.model_class in _classes("", str(model.config.model_type))
        return tree if tree.followed or not is_tower else None


def read_tree(model: nn.Module) -> Inventory:
    """List the modules of a model; of one on the meta device, follow a forward through them."""
    rows = _rows(model)
    tokens, image_tokens = _tokens(model, rows or {})
    encoder, source_tokens = _source(model, rows or {})
    seen: set[int] = set()
    modules = []
    for path, module in model.named_modules():
        weights = []
        for name, parameter in module.named_parameters(recurse=False):
            weights.append(
                StoredWeight(name=name, shape=_axes(module, parameter), tied=id(parameter) in seen)
            )
            seen.add(id(parameter))
        if weights:
            modules.append(
                StoredModule(
                    path=path,
                    kind=type(module).__name__,
                    weights=tuple(weights),
                    passes=None
                    if rows is None
                    else rows.get(path, 0.0)
                    / (source_tokens if encoder and path.startswith(encoder) else tokens),
                    sizes=_sizes(model, path),
                )
            )
    return Inventory(
        model_class=type(model).__name__,
        library=_library(),
        followed=rows is not None,
        image_tokens=image_tokens,
        source_tokens=source_tokens,
        is_seq2seq=bool(getattr(model.config, "is_encoder_decoder", False)),
        is_encoder=_is_encoder(model.config),
        modules=tuple(modules),
    )


def _axes(module: nn.Module, parameter: torch.Tensor) -> tuple[int, ...]:
    """Return the shape of a weight, of a matrix always as [N, K]."""
    shape = tuple(parameter.shape)
    return shape[::-1] if type(module).__name__ == "Conv1D" and len(shape) == 2 else shape


def _library() -> str:
    return f"transformers {transformers.__version__}"


def _sizes(model: nn.Module, path: str) -> dict[str, int]:
    """Return the whole numbers that a module and the module around it keep, by name."""
    sizes: dict[str, int] = {}
    for owner in (path, path.rpartition(".")[0]):
        module = model.get_submodule(owner)
        for name in _SIZES:
            value = getattr(module, name, None)
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                sizes.setdefault(name, value)
    return sizes


def _tree(config: Mapping[str, Any]) -> Any:
    """Return the model of a config on the meta device; None if transformers cannot build it."""
    plain = {key: _decoded(value) for key, value in config.items() if key not in _NOT_SHAPES}
    kind = str(plain.get("model_type", ""))
    try:
        known = CONFIG_MAPPING[kind].from_dict(plain)
        is_seq2seq = bool(getattr(known, "is_encoder_decoder", False))
        if is_seq2seq and not plain.get("architectures") and _has_decoder_alone(kind):
            return None
        cls = model_class(kind, plain.get("architectures"), is_seq2seq=is_seq2seq)
        if cls is None:
            return None
        part = known.get_text_config()
        if not isinstance(known, cls.config_class) and isinstance(part, cls.config_class):
            known = part
        if getattr(part, "num_hidden_layers", 0) > MAX_LAYERS:
            return None  # its modules would be made one after the other
        known._attn_implementation = "sdpa"
        with torch.device("meta"):
            try:
                return cls._from_config(known, dtype=torch.bfloat16).eval()
            except ValueError:  # its attention is its own
                known._attn_implementation = "eager"
                return cls._from_config(known, dtype=torch.bfloat16).eval()
    except _REFUSALS:
        return None


def _decoded(value: Any) -> Any:
    """Return a value of a config with the numbers that JSON lacks, as transformers writes them."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"}:
            return float(str(value["__float__"]))
        return {key: _decoded(item) for key, item in value.items()}
    return [_decoded(item) for item in value] if isinstance(value, list) else value


def model_class(kind: str, architectures: object, *, is_seq2seq: bool = False) -> Any:
    """Return the class of transformers that a config names, or that its type has; None without.

    Args:
        kind: The `model_type` of the config.
        architectures: Its list of class names, if it has one.
        is_seq2seq: Whether the config describes an encoder and a decoder; where it names no class,
            the class is one of both.
    """
    names = [str(name) for name in architectures] if isinstance(architectures, list) else []
    for head in sorted(_HEADS, key=lambda head: is_seq2seq and "SEQ" not in head):
        names += _classes(head, kind)
    for name in names:
        cls = getattr(transformers, name, None)
        if inspect.isclass(cls) and issubclass(cls, PreTrainedModel):
            return cls
    return None


def _has_decoder_alone(kind: str) -> bool:
    """Return whether a type has a class of both parts and one of its decoder alone.

    PegasusForCausalLM leaves its config as that of an encoder and a decoder: where the config names
    no class, it may be either, with other parameters.
    """
    both = any(_classes(head, kind) for head in _HEADS if "SEQ" in head)
    return both and bool(_classes("FOR_CAUSAL_LM", kind))


def _classes(head: str, kind: str) -> list[str]:
    """Return the names of the classes that a model type has for a head."""
    name = f"MODEL_{head}_MAPPING_NAMES".replace("__", "_")
    own = getattr(modeling_auto, name, {}).get(kind, [])
    return [own] if isinstance(own, str) else list(own)


def _is_encoder(config: Any) -> bool:
    """Return whether tokens attend to all others: a masked language model, unless it decodes."""
    if getattr(config, "is_decoder", False) or getattr(config, "is_encoder_decoder", False):
        return False
    return bool(_classes("FOR_MASKED_LM", str(config.model_type)))


def _rows(model: Any) -> dict[str, float] | None:
    """Return the rows that each module sees in a forward; None if none can be followed.

    What the forward decides by values (which experts get a token, where a sequence ends) has no
    answer without values: such a forward ends with an error.
    """
    if any(parameter.device.type != "meta" for parameter in model.parameters()):
        return None
    rows: dict[str, float] = {}
    hooks = []
    for path, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            hooks.append(module.register_forward_hook(_count_rows(rows, path)))
    try:
        with torch.device("meta"), torch.no_grad(), _unpacked():
            model(**_inputs(model))
    except _REFUSALS:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return rows


def _tokens(model: Any, rows: Mapping[str, float]) -> tuple[float, int]:
    """Return the tokens of the forward, and those of an image where it is the input.

    An image is as many tokens as most of the matrices see.
    """
    if getattr(model, "main_input_name", "") != "pixel_values" or not rows:
        return TOKENS, 0
    linears = [path for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    seen = Counter(rows[path] for path in linears if path in rows)
    tokens = seen.most_common(1)[0][0] if seen else TOKENS
    return tokens, round(tokens)


def _source(model: Any, rows: Mapping[str, float]) -> tuple[str, int]:
    """Return the path of an encoder that sees inputs of one length, and how many tokens they are.

    They are as many as most of its matrices see; "" and 0 for an encoder of texts.
    """
    if not (rows and model.config.is_encoder_decoder) or _main_input(model) == "input_ids":
        return "", 0
    encoder = model.get_encoder()
    path = next(path for path, module in model.named_modules() if module is encoder)
    linears = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    seen = Counter(rows.get(name, 0.0) for name in linears if name.startswith(f"{path}."))
    return f"{path}.", round(seen.most_common(1)[0][0])


def _main_input(model: Any) -> str:
    return str(getattr(model, "main_input_name", "input_ids"))


def _count_rows(rows: dict[str, float], path: str) -> Any:
    """Return a hook that adds the rows of a call to those of a path."""

    def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        given = next((x for x in (*inputs, output) if isinstance(x, torch.Tensor)), None)
        if isinstance(module, nn.Conv1d):  # its rows are places of [B, channels, places]
            rows[path] = rows.get(path, 0.0) + output.numel() / module.out_channels
        elif given is not None and given.dim():
            rows[path] = rows.get(path, 0.0) + given.numel() / max(1, given.shape[-1])

    return hook


def _inputs(model: Any) -> dict[str, Any]:
    """Return the inputs of a forward of TOKENS tokens, or of one image."""
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        size = getattr(model.config, "image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(model.config, "num_channels", 3)
        return {"pixel_values": torch.zeros(1, channels, height, width, dtype=torch.bfloat16)}
    ids = torch.zeros(1, TOKENS, dtype=torch.long)
    if _main_input(model) == "input_features" and model.config.is_encoder_decoder:
        bins, frames = model.config.num_mel_bins, 2 * model.config.max_source_positions
        features = torch.zeros(1, bins, frames, dtype=torch.bfloat16)
        return {"input_features": features, "decoder_input_ids": ids}
    given: dict[str, Any] = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        return {**given, "decoder_input_ids": ids}
    if "use_cache" in inspect.signature(model.forward).parameters:
        given["use_cache"] = False
    return given


@contextlib.contextmanager
def _unpacked() -> Iterator[None]:
    """Tell masks that no sequences are packed or padded: finding that reads values."""
    with (
        mock.patch.object(masking_utils, "find_packed_sequence_indices", lambda *_, **__: None),
        mock.patch.object(masking_utils, "fast_all", lambda *_: True, create=True),
    ):
        yield


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what transformers says of a config from the terminal."""
    import warnings

    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)
