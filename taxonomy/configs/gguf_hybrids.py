"""Configs of hybrids from the header of a GGUF file, whose layers differ by their tensors.

In: the keys of a header without the name of its architecture, and the names of its tensors. Out:
the keys of a Hugging Face config of the same model. A header lists no kinds of layers: a layer with
`ssm_in` has a state-space mixer, one with `attn_q` attention, one with `ffn_gate_inp` experts.
Sources: gguf-py/gguf/constants.py of github.com/ggml-org/llama.cpp for the names, its
convert_hf_to_gguf.py for what each key holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import and_
from typing import Any

from msgspec import Struct

from prunescope.taxonomy.configs.architecture_table import unwritten
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.formats import MAX_LAYERS

Config = dict[str, Any]


class GgufLayers(Struct, frozen=True, kw_only=True):
    """A header: its keys without the architecture's name, and the tensors of each layer.

    `layers` has the names of a layer's tensors, such as `attn_q.weight` or `ssm_a`.
    """

    values: Mapping[str, Any]
    layers: tuple[frozenset[str], ...]

    def size(self, key: str) -> int:
        """Return the whole number under a key, the largest of a list; 0 without it."""
        value = self.values.get(key)
        sizes = value if isinstance(value, list) else [value]
        return max((n for n in sizes if type(n) is int and n >= 0), default=0)

    def needed(self, key: str) -> int:
        """Return the positive number under a key. Raise PrunescopeError without one."""
        if not (size := self.size(key)):
            raise PrunescopeError(
                f"the header says nothing of {key}", hint="give the config.json of the model"
            )
        return size

    def has(self, name: str) -> list[bool]:
        """Return for each layer whether it stores a tensor of this name, with any ending."""
        return [any(tensor.split(".")[0] == name for tensor in layer) for layer in self.layers]

    def stores(self, tensor: str) -> bool:
        """Return whether some layer stores a tensor of this full name."""
        return any(tensor in layer for layer in self.layers)


def layers_of(tensors: Iterable[str], count: int) -> tuple[frozenset[str], ...]:
    """Return the names of the tensors of each of `count` layers, without their number."""
    layers: list[set[str]] = [set() for _ in range(min(count, MAX_LAYERS))]
    for name in tensors:
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        if part == "blk" and number.isdecimal() and len(number) < 6 and int(number) < len(layers):
            layers[int(number)].add(inner)
    return tuple(map(frozenset, layers))


def hybrid_keys(
    kind: str, model_type: str, values: Mapping[str, Any], tensors: Iterable[str]
) -> Config:
    """Return the keys of a hybrid's config; none for an architecture that is no hybrid.

    None stands for a key that the config of this model lacks.

    Args:
        kind: The `general.architecture` of the header.
        model_type: The type of the config.
        values: The keys of the header.
        tensors: The names of its tensors.

    Raises:
        PrunescopeError: A key is missing, or the tensors of a layer do not say what it is.
    """
    code = unwritten(model_type)
    read = _READERS.get(code.layers_code or code.mixer_code)
    if read is None:
        return {}
    own = {key.removeprefix(f"{kind}."): value for key, value in values.items()}
    count = own.get("block_count")
    layers = layers_of(tensors, count if type(count) is int else 0)
    header = GgufLayers(values=own, layers=layers)
    sizes = {
        "num_attention_heads": header.size("attention.head_count"),
        "num_key_value_heads": header.size("attention.head_count_kv"),
        "intermediate_size": header.size("feed_forward_length"),
    }
    # A model without attention, or whose layers all have experts, has 0 of some of them.
    return {key: size or None for key, size in sizes.items()} | read(header)


def _kinds(header: GgufLayers, names: Mapping[str, str]) -> list[str]:
    """Return the kind of each layer by the first of some tensors that it stores."""
    stored = {name: header.has(name) for name in names}
    kinds = []
    for number in range(len(header.layers)):
        kind = next((names[name] for name in names if stored[name][number]), None)
        if kind is None:
            raise PrunescopeError(
                f"layer {number} of the file stores none of {', '.join(names)}",
                hint="give the config.json of the model: this file holds a part of it, or layers "
                "of another kind",
            )
        kinds.append(kind)
    return kinds


_SSM = {"ssm_in": "linear_attention", "attn_q": "full_attention"}
_DELTA = {"ssm_conv1d": "linear_attention", "attn_q": "full_attention"}
_SHORT = {"shortconv": "conv", "attn_q": "full_attention"}


def _experts(header: GgufLayers) -> Config:
    """Return the keys of experts; a number of 0 where the model has none."""
    return {
        "num_experts": header.size("expert_count"),
        "num_experts_per_tok": header.size("expert_used_count"),
        "moe_intermediate_size": header.size("expert_feed_forward_length") or None,
        "shared_expert_intermediate_size": header.size("expert_shared_feed_forward_length") or None,
    }


def _nemotron_h(header: GgufLayers) -> Config:
    """Read a Nemotron-H, each layer of which is a mixer, an attention, an MLP or experts."""
    letters = {"ssm_in": "M", "attn_q": "*", "ffn_gate_inp": "E", "ffn_up": "-"}
    heads, pattern = header.needed("ssm.time_step_rank"), "".join(_kinds(header, letters))
    return {
        "hybrid_override_pattern": pattern,
        "mamba_num_heads": heads,
        "mamba_head_dim": header.needed("ssm.inner_size") // heads,
        "n_groups": header.needed("ssm.group_count"),
        "ssm_state_size": header.needed("ssm.state_size"),
        "conv_kernel": header.needed("ssm.conv_kernel"),
        "use_conv_bias": header.stores("ssm_conv1d.bias"),
        **(_nemotron_experts(header) if "E" in pattern else {}),
    }


def _nemotron_experts(header: GgufLayers) -> Config:
    """Return the keys of a Nemotron-H's experts; those that read a latent are refused later."""
    shared = header.size("expert_shared_feed_forward_length")
    return {
        "n_routed_experts": header.size("expert_count"),
        "num_experts_per_tok": header.size("expert_used_count"),
        "moe_intermediate_size": header.size("expert_feed_forward_length") or None,
        "moe_shared_expert_intermediate_size": shared,
        "n_shared_experts": 1 if shared else 0,
        "moe_latent_size": 1 if any(header.has("ffn_latent_down")) else None,
    }


def _jamba(header: GgufLayers) -> Config:
    """Read a Jamba, whose attention and experts come in periods."""
    attention = _period([kind == "full_attention" for kind in _kinds(header, _SSM)])
    experts = _period(header.has("ffn_gate_inp"))
    return {
        "attn_layer_period": attention[0],
        "attn_layer_offset": attention[1],
        "expert_layer_period": experts[0],
        "expert_layer_offset": experts[1],
        "num_experts": header.size("expert_count"),
        "num_experts_per_tok": header.size("expert_used_count"),
        "mamba_d_state": header.needed("ssm.state_size"),
        "mamba_d_conv": header.needed("ssm.conv_kernel"),
        "mamba_dt_rank": header.needed("ssm.time_step_rank"),
        "mamba_expand": _expansion(header),
        "mamba_conv_bias": header.stores("ssm_conv1d.bias"),
    }


def _period(has: list[bool]) -> tuple[int, int]:
    """Return every how many-th layer has something, and the first that has it."""
    numbers = [number for number, is_there in enumerate(has) if is_there]
    layers = len(has)
    if not numbers:
        return layers + 1, layers  # no layer of the model
    first = numbers[0]
    period = numbers[1] - first if len(numbers) > 1 else layers
    if numbers != list(range(first, layers, period)) or first >= period:
        raise PrunescopeError(
            f"layers {', '.join(map(str, numbers[:8]))} of a Jamba are no period",
            hint="give its config.json",
        )
    return period, first


def _expansion(header: GgufLayers) -> int | float:
    """Return the inner width of a mixer as a multiple of the stream."""
    inner, hidden = header.needed("ssm.inner_size"), header.needed("embedding_length")
    return inner // hidden if inner % hidden == 0 else inner / hidden


def _mamba_2(header: GgufLayers) -> Config:
    """Read Mamba-2 mixers beside attention, in the same layers (Falcon-H1) or others (Granite 4).

    `time_step_rank` is the number of heads of a mixer. Without routed experts, the MLP of a Granite
    is the one that its config calls shared.
    """
    keys: Config = {
        "mamba_n_heads": header.needed("ssm.time_step_rank"),
        "mamba_d_ssm": header.needed("ssm.inner_size"),
        "mamba_n_groups": header.needed("ssm.group_count"),
        "mamba_d_state": header.needed("ssm.state_size"),
        "mamba_d_conv": header.needed("ssm.conv_kernel"),
        "mamba_conv_bias": header.stores("ssm_conv1d.bias"),
        "mamba_rms_norm": header.stores("ssm_norm.weight"),
        "mamba_proj_bias": header.stores("ssm_in.bias"),
        "projectors_bias": header.stores("ssm_out.bias"),
    }
    kinds = _kinds(header, _SSM)
    if all(map(and_, header.has("ssm_in"), header.has("attn_q"))):
        return keys
    experts, width = header.size("expert_count"), header.size("feed_forward_length")
    shared = header.size("expert_shared_feed_forward_length")
    return {
        **keys,
        "layer_types": kinds,
        "num_local_experts": experts,
        "num_experts_per_tok": header.size("expert_used_count"),
        "shared_intermediate_size": (shared if experts else shared or width) or None,
    }


def _short_convolutions(header: GgufLayers) -> Config:
    """Read an LFM2: its widths are written as they are."""
    experts = header.has("ffn_gate_inp")
    routed = {**_experts(header), "num_dense_layers": experts.index(True)} if any(experts) else {}
    return {
        "layer_types": _kinds(header, _SHORT),
        "conv_L_cache": header.needed("shortconv.l_cache"),
        "conv_bias": header.stores("shortconv.conv.bias"),
        "block_auto_adjust_ff_dim": False,
        **routed,
    }


def _delta_net(header: GgufLayers) -> Config:
    """Read a Qwen3-Next or Qwen3.5: `time_step_rank` is the number of value heads."""
    heads = header.needed("ssm.time_step_rank")
    routed = _experts(header) if any(header.has("ffn_gate_inp")) else {}
    return {
        "layer_types": _kinds(header, _DELTA),
        "linear_num_value_heads": heads,
        "linear_value_head_dim": header.needed("ssm.inner_size") // heads,
        "linear_num_key_heads": header.needed("ssm.group_count"),
        "linear_key_head_dim": header.needed("ssm.state_size"),
        "linear_conv_kernel_dim": header.needed("ssm.conv_kernel"),
        **routed,
    }


def _mamba_alone(header: GgufLayers) -> Config:
    """Read a Mamba or Mamba-2, which have no attention; the latter has groups."""
    _kinds(header, {"ssm_in": ""})
    keys = {
        "expand": _expansion(header),
        "state_size": header.needed("ssm.state_size"),
        "conv_kernel": header.needed("ssm.conv_kernel"),
        "use_conv_bias": header.stores("ssm_conv1d.bias"),
    }
    rank = header.needed("ssm.time_step_rank")
    if not (groups := header.size("ssm.group_count")):
        return {**keys, "time_step_rank": rank}
    head_dim = header.needed("ssm.inner_size") // rank
    return {**keys, "num_heads": rank, "head_dim": head_dim, "n_groups": groups}


# By the code of the model type, as the table of architectures has it: that of its layers, or else
# of its mixer.
_READERS: Mapping[str, Callable[[GgufLayers], Config]] = {
    "one sublayer each": _nemotron_h,
    "two periods": _jamba,
    "mamba-1 alone": _mamba_alone,
    "mamba-2": _mamba_2,
    "mamba-2 alone": _mamba_alone,
    "short convolution": _short_convolutions,
    "delta net": _delta_net,
}
