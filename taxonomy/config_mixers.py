"""How Hugging Face configs spell a hybrid's mixers: linear attention, state space, convolution.

In: a config dict and the fields of ModelShape that are known. Out: its fields of the mixer. Only
mixers whose code was read, `mixer_code` of the table, are known.
`linears_alone` is for models that have a mixer and no attention: no ModelShape describes them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.architecture_table import unwritten
from prunescope.taxonomy.config_keys import Fields
from prunescope.taxonomy.config_names import size_in


def read_mixer(cfg: Mapping[str, Any], known: Fields) -> Fields:
    """The fields of the mixer; none where its sizes or the code of the model type are not known."""
    own, hidden = unwritten(known["model_type"]), known["hidden"]
    layers = known["layers"] if own.beside else known.get("other_layers", 0)
    found: Fields | None = None
    if own.mixer_code == "delta net":
        found = _linear(cfg)
    elif own.mixer_code == "mamba-2":
        found = _state_space(cfg, hidden, beside=own.beside)
    elif own.mixer_code == "short convolution":
        found = _convolution(cfg, hidden)
    return {"mixer_layers": layers, **found} if found and layers else {}


def linears_alone(cfg: Mapping[str, Any], hidden: int) -> dict[str, tuple[int, int]]:
    """(N, K) of the matrices of a mixer without attention, by role and part as
    `ModelShape.mixer_linears` has them; none where its sizes or its code are not known."""
    code = unwritten(str(cfg.get("model_type"))).mixer_code
    width, state = _expanded(cfg.get("expand"), hidden), size_in(cfg, ("state_size",))
    if width is None or state is None:
        return {}
    out = {"mixer_out": (hidden, width)}
    if code == "mamba-1 alone":
        auto = cfg.get("time_step_rank") in ("auto", None)
        rank = math.ceil(hidden / 16) if auto else size_in(cfg, ("time_step_rank",))
        assert rank is not None
        step = {"mixer_in.x": (rank + 2 * state, width), "mixer_in.dt": (width, rank)}
        return {"mixer_in": (2 * width, hidden), **step, **out}
    sizes = _sizes(cfg, ("num_heads", "n_groups")) if code == "mamba-2 alone" else None
    if sizes is None:
        return {}
    heads, groups = sizes
    return {"mixer_in": (2 * width + 2 * groups * state + heads, hidden), **out}


def _linear(cfg: Mapping[str, Any]) -> Fields | None:
    """Gated delta net. Beside its matrices: a step and a decay a head, a norm of one head."""
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
        "mixer_extras": 2 * heads + value_dim,
    }


def _state_space(cfg: Mapping[str, Any], hidden: int, *, beside: bool) -> Fields | None:
    """Mamba-2. Beside its matrices: a step, a decay and a skip a head, biases, a norm. `beside`
    attention it has a bias switch of its own, and no norm unless the config says so."""
    sizes = _sizes(cfg, ("mamba_n_heads", "mamba_n_groups", "mamba_d_state", "mamba_d_conv"))
    width = size_in(cfg, ("mamba_d_ssm",)) or _expanded(cfg.get("mamba_expand"), hidden)
    if sizes is None or width is None:
        return None
    heads, groups, state, taps = sizes
    channels = width + 2 * groups * state
    into, out = bool(cfg.get("mamba_proj_bias")), bool(cfg.get("mamba_proj_bias"))
    if beside:
        out = bool(cfg.get("projectors_bias"))
    extras = 3 * heads + (width + channels + heads) * into + hidden * out
    extras += channels * bool(cfg.get("mamba_conv_bias", True))
    extras += width * bool(cfg.get("mamba_rms_norm", not beside))
    return {
        "mixer": "ssm",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": groups * state,
        "mixer_state": state,
        "mixer_taps": taps,
        "mixer_extras": extras,
    }


def _convolution(cfg: Mapping[str, Any], hidden: int) -> Fields | None:
    """Short convolution between two gates. One switch for its biases: 3 in, 1 each taps and out."""
    sizes = _sizes(cfg, ("conv_L_cache",))
    if sizes is None:
        return None
    return {
        "mixer": "conv",
        "mixer_width": hidden,
        "mixer_taps": sizes[0],
        "mixer_extras": 5 * hidden * bool(cfg.get("conv_bias")),
    }


def _sizes(cfg: Mapping[str, Any], names: tuple[str, ...]) -> list[int] | None:
    """All of `names`, or None where one is missing."""
    found = [size_in(cfg, (name,)) for name in names]
    known = [size for size in found if size is not None]
    return known if len(known) == len(names) else None


def _expanded(factor: object, hidden: int) -> int | None:
    """The inner width of a config that gives it as a multiple of the hidden size."""
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 0 < factor < 1024:
        return None
    return int(factor * hidden)
