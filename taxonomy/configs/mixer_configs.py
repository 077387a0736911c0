"""The dimensions of a model's mixer, from the keys of its config.

In: a config, and the fields that were read of it. Out: fields of the mixer, by their keys in
run.json; none where a size or the code of the model type is not known. `linears_alone` is for
models that have a mixer and no attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from prunescope.taxonomy.configs.architecture_table import unwritten
from prunescope.taxonomy.configs.config_sizes import Fields, size_in

_DELTA_CHUNK = 64  # tokens of a chunk in the kernels of flash-linear-attention and transformers


def read_mixer(cfg: Mapping[str, Any], known: Fields) -> Fields:
    """Read the fields of the mixer; none if its sizes or its model type's code are not known."""
    own, hidden = unwritten(known["model_type"]), known["hidden"]
    layers = known["layers"] if own.parallel_mixer else known.get("other_layers", 0)
    sizes: Fields | None = None
    if own.mixer_code == "mamba-2":
        sizes = _state_space(cfg, hidden, parallel=own.parallel_mixer)
    elif own.mixer_code in _CODES:
        sizes = _CODES[own.mixer_code](cfg, hidden)
    return {"mixer_layers": layers, **sizes} if sizes and layers else {}


def linears_alone(cfg: Mapping[str, Any], hidden: int) -> dict[str, tuple[int, int]]:
    """Return (N, K) of the matrices of a mixer without attention, by role and part.

    The roles are those of `MixerShape.linears`. There are none if the sizes or the code are not
    known.
    """
    code = unwritten(str(cfg.get("model_type"))).mixer_code
    width, state = _expanded(cfg.get("expand"), hidden), size_in(cfg, ("state_size",))
    if width is None or state is None:
        return {}
    last = {"mixer_out": (hidden, width)}
    if code == "mamba-1 alone":
        auto = cfg.get("time_step_rank") in ("auto", None)
        rank = math.ceil(hidden / 16) if auto else size_in(cfg, ("time_step_rank",))
        assert rank is not None
        step = {"mixer_in.x": (rank + 2 * state, width), "mixer_in.dt": (width, rank)}
        return {"mixer_in": (2 * width, hidden), **step, **last}
    sizes = _sizes(cfg, ("num_heads", "n_groups")) if code == "mamba-2 alone" else None
    if sizes is None:
        return {}
    heads, groups = sizes
    return {"mixer_in": (2 * width + 2 * groups * state + heads, hidden), **last}


def _linear(cfg: Mapping[str, Any], _hidden: int) -> Fields | None:
    """Read a gated delta net; None if a size is missing.

    It stores, besides its matrices, a step and a decay per head, and the norm of one head.
    """
    sizes = _sizes(
        cfg,
        (
            "linear_num_value_heads",
            "linear_value_head_dim",
            "linear_num_key_heads",
            "linear_key_head_dim",
            "linear_conv_kernel_dim",
        ),
    )
    if sizes is None:
        return None
    heads, value_dim, key_heads, key_dim, taps = sizes
    return {
        "mixer": "linear",
        "mixer_width": heads * value_dim,
        "mixer_heads": heads,
        "mixer_keys": key_heads * key_dim,
        "mixer_state": key_dim,
        "mixer_taps": taps,
        "mixer_chunk": _DELTA_CHUNK,
        "mixer_extras": 2 * heads + value_dim,
    }


def _state_space(cfg: Mapping[str, Any], hidden: int, *, parallel: bool) -> Fields | None:
    """Read a Mamba-2 mixer; None if a size is missing.

    It stores, besides its matrices, a step, a decay and a skip per head, biases and a norm.
    `parallel` to attention it has its own key for the bias of its output, and no norm unless the
    config says so.
    """
    sizes = _sizes(cfg, ("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"))
    width = size_in(cfg, ("mamba_d_ssm",)) or _expanded(cfg.get("mamba_expand"), hidden)
    if sizes is None or width is None:
        return None
    heads, groups, state, taps = sizes
    channels = width + 2 * groups * state
    bias_in, bias_out = bool(cfg.get("mamba_proj_bias")), bool(cfg.get("mamba_proj_bias"))
    if parallel:
        bias_out = bool(cfg.get("projectors_bias"))
    extras = 3 * heads + (width + channels + heads) * bias_in + hidden * bias_out
    extras += channels * bool(cfg.get("mamba_conv_bias", True))
    extras += width * bool(cfg.get("mamba_rms_norm", not parallel))
    return {
        "mixer": "ssm",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": groups * state,
        "mixer_state": state,
        "mixer_taps": taps,
        "mixer_chunk": size_in(cfg, ("mamba_chunk_size",)) or 256,
        "mixer_extras": extras,
    }


def _convolution(cfg: Mapping[str, Any], hidden: int) -> Fields | None:
    """Read a short convolution between two gates; None if a size is missing.

    It has one switch for its biases: three in, one each for taps and out.
    """
    sizes = _sizes(cfg, ("conv_L_cache",))
    if sizes is None:
        return None
    return {
        "mixer": "conv",
        "mixer_width": hidden,
        "mixer_taps": sizes[0],
        "mixer_extras": 5 * hidden * bool(cfg.get("conv_bias")),
    }


def _kimi_delta(cfg: Mapping[str, Any], _hidden: int) -> Fields | None:
    """Read a Kimi delta attention; None if a size is missing.

    It stores, besides its matrices, a step for each channel, a decay per head and a norm.
    """
    sizes = _sizes(cfg, ("linear_num_heads", "linear_head_dim", "linear_conv_kernel_dim"))
    if sizes is None:
        return None
    heads, head_dim, taps = sizes
    width = heads * head_dim
    return {
        "mixer": "kda",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": width,
        "mixer_state": head_dim,
        "mixer_taps": taps,
        "mixer_rank": head_dim,
        "mixer_chunk": _DELTA_CHUNK,
        "mixer_extras": width + heads + head_dim,
    }


def _mamba_1(cfg: Mapping[str, Any], hidden: int) -> Fields | None:
    """Read a Mamba mixer; None if a size is missing.

    It stores, besides its matrices, a decay for each number of state, the skip and the bias of the
    step of each channel, and Jamba's norms of step, B and C.
    """
    sizes = _sizes(cfg, ("mamba_d_state", "mamba_d_conv"))
    width, rank = _expanded(cfg.get("mamba_expand"), hidden), cfg.get("mamba_dt_rank")
    if sizes is None or width is None:
        return None
    state, taps = sizes
    if rank in ("auto", None):
        rank = math.ceil(hidden / 16)
    extras = width * (state + 2) + rank + 2 * state
    extras += width * bool(cfg.get("mamba_conv_bias", True))
    extras += (2 * width + hidden) * bool(cfg.get("mamba_proj_bias"))
    return {
        "mixer": "mamba-1",
        "mixer_width": width,
        "mixer_keys": state,
        "mixer_state": state,
        "mixer_taps": taps,
        "mixer_rank": rank,
        "mixer_extras": extras,
    }


def _lightning(cfg: Mapping[str, Any], hidden: int) -> Fields | None:
    """Read a lightning attention, whose heads are those of attention; None if one is missing."""
    heads = size_in(cfg, ("num_attention_heads",))
    if heads is None:
        return None
    head_dim = size_in(cfg, ("head_dim",)) or hidden // heads
    width = heads * head_dim
    return {
        "mixer": "lightning",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": width,
        "mixer_state": head_dim,
        "mixer_chunk": size_in(cfg, ("block_size",)) or 256,
        "mixer_extras": width,  # a norm of its output
    }


def _rg_lru(cfg: Mapping[str, Any], hidden: int) -> Fields | None:
    """Read an RG-LRU; None if a size is missing.

    It stores, besides its matrices, a decay and the biases of two gates, of the convolution, of two
    matrices in and of the one out.
    """
    heads, width = size_in(cfg, ("num_attention_heads",)), size_in(cfg, ("lru_width",)) or hidden
    if heads is None:
        return None
    return {
        "mixer": "rg-lru",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_state": 1,
        "mixer_taps": size_in(cfg, ("conv1d_width",)) or 4,
        "mixer_extras": 6 * width + hidden,
    }


def _sizes(cfg: Mapping[str, Any], names: tuple[str, ...]) -> list[int] | None:
    """Return the sizes under all of `names`, or None if one is missing."""
    sizes = [size_in(cfg, (name,)) for name in names]
    known = [size for size in sizes if size is not None]
    return known if len(known) == len(names) else None


def _expanded(factor: object, hidden: int) -> int | None:
    """Return the inner width of a config that gives it as a multiple of the hidden size."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
        return None
    return int(factor * hidden)


_CODES: Mapping[str, Callable[[Mapping[str, Any], int], Fields | None]] = {
    "delta net": _linear,
    "kimi delta": _kimi_delta,
    "short convolution": _convolution,
    "mamba-1": _mamba_1,
    "lightning": _lightning,
    "rg-lru": _rg_lru,
}
