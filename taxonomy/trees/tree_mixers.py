"""The dimensions of a mixer of tokens by its modules: state spaces, delta nets, convolutions.

In: the modules of a mixer, by their paths inside of it. Out: the fields of MixerShape by their keys
in run.json. A kind is known by what only it stores (a decay, a gate, taps); its dimensions follow
from the sides of its matrices, and hold only if they give back every matrix and tap.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from prunescope.taxonomy.configs.config_sizes import size_in
from prunescope.taxonomy.inventory import StoredModule
from prunescope.taxonomy.lazy_pattern import lazy_pattern
from prunescope.taxonomy.mixers import MixerShape

_Modules = Mapping[str, StoredModule]
_Sides = Mapping[str, tuple[int, ...]]  # of every weight with two axes or more, by path and name
_DECAYS = ("A_log", "time_decay")
_MARKS = lazy_pattern(r"(^|\.)(rg_lru|igate_preact|output_gate)$")


def mixer_root(modules: _Modules) -> str:
    """Return the path of the mixer of a layer: the part around its decay, gate or taps; or ""."""
    for path, module in modules.items():
        taps = module.kind == "Conv1d" and f"{path.rpartition('.')[0]}.in_proj" in modules
        decays = any(weight.name in _DECAYS for weight in module.weights)
        if not (taps or decays or _MARKS.search(path)):
            continue
        inside = [other for other in modules if other.startswith(f"{path}.")]
        has_out = any(re.search(r"out|o_proj", other.rpartition(".")[2]) for other in inside)
        return path if has_out else path.rpartition(".")[0]
    return ""


def read_tree_mixer(modules: _Modules, hidden: int, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a mixer; empty if no kind explains all of its matrices.

    Args:
        modules: The modules inside of the mixer; the mixer itself is "".
        hidden: The width of the residual stream.
        cfg: The config of the decoder, for the size of a state and of a chunk.
    """
    sides = {
        f"{path}.{weight.name}".removesuffix(".weight").lstrip("."): weight.shape
        for path, module in modules.items()
        for weight in module.weights
        if len(weight.shape) > 1
    }
    decay = next((w.shape for m in modules.values() for w in m.weights if w.name == "A_log"), ())
    stored = sum(module.numbers for module in modules.values())
    matrices = sum(_numbers(s) for name, s in sides.items() if not _is_small(name, s))
    chunk = size_in(cfg, ("mamba_chunk_size", "chunk_size")) or 0
    for read in _READERS:
        fields = read(sides, decay, hidden, cfg)
        if not fields:
            continue
        mixer = MixerShape(
            **{key.removeprefix("mixer_"): v for key, v in fields.items() if key != "mixer"},
            kind=fields["mixer"],
        )
        counted = mixer.parameters(hidden)
        taps = mixer.channels * mixer.taps
        if counted - taps == matrices and stored >= counted:
            return {**fields, "mixer_extras": stored - counted, "mixer_chunk": chunk}
    return {}


def _is_small(name: str, size: tuple[int, ...]) -> bool:
    """Return whether a weight with axes is no matrix: taps, decays, steps and mixes."""
    leaf = name.rpartition(".")[2]
    return leaf in ("A_log", "D") or "conv" in leaf or "bias" in leaf or 1 in size[:2]


def _numbers(size: tuple[int, ...]) -> int:
    count = 1
    for side in size:
        count *= side
    return count


def _named(sides: _Sides, pattern: str) -> tuple[int, ...] | None:
    """Return the sides of the weight whose last name matches; None without one, or with several."""
    names = [name for name in sides if re.fullmatch(pattern, name.rpartition(".")[2])]
    return sides[names[0]] if len(names) == 1 else None


def _taps(sides: _Sides) -> int:
    taps = _named(sides, r"(conv|conv1d|conv_1d)")
    return taps[-1] if taps else 0


def _out(sides: _Sides) -> int | None:
    """Return the channels that a mixer puts out."""
    size = _named(sides, r"out_proj|o_proj|output|linear_out")
    return size[1] if size else None


def _mamba(
    sides: _Sides, decay: tuple[int, ...], _hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a Mamba mixer, whose decay has an entry for each number of state of each channel."""
    width = _out(sides)
    if len(decay) < 2 or width is None or _numbers(decay[:-1]) != width:
        return {}
    step = _named(sides, "dt_proj(_weight)?")
    rank = step[-1] if step else 0
    return {
        "mixer": "mamba-1",
        "mixer_width": width,
        "mixer_state": decay[-1],
        "mixer_rank": rank,
        "mixer_taps": _taps(sides),
    }


def _mamba_2(
    sides: _Sides, decay: tuple[int, ...], hidden: int, cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a Mamba-2 mixer, whose decay has an entry for each head."""
    width, rows = _out(sides), _named(sides, "in_proj")
    if len(decay) != 1 or width is None or rows is None or rows[1] != hidden:
        return {}
    heads = decay[0]
    keys, left = divmod(rows[0] - 2 * width - heads, 2)
    state = size_in(cfg, ("mamba_d_state", "ssm_state_size", "state_size")) or keys
    if left or keys < 1 or keys % state:
        return {}
    return {
        "mixer": "ssm",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": keys,
        "mixer_state": state,
        "mixer_taps": _taps(sides),
    }


def _delta(
    sides: _Sides, decay: tuple[int, ...], hidden: int, cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a gated delta net: values and gates as wide as its output, keys and queries, steps."""
    width = _out(sides)
    if len(decay) != 1 or width is None:
        return {}
    rows = sum(
        s[0]
        for name, s in sides.items()
        if len(s) == 2 and s[1] == hidden and not re.search("out_proj|o_proj", name)
    )
    keys, left = divmod(rows - 2 * width - 2 * decay[0], 2)
    state = size_in(cfg, ("linear_key_head_dim",)) or keys // decay[0]
    if left or keys < 1 or state < 1:
        return {}
    return {
        "mixer": "linear",
        "mixer_width": width,
        "mixer_heads": decay[0],
        "mixer_keys": keys,
        "mixer_state": state,
        "mixer_taps": _taps(sides),
    }


def _kimi_delta(
    sides: _Sides, decay: tuple[int, ...], _hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read Kimi delta attention: a decay of a low rank for each channel of the keys."""
    width, low, keys = _out(sides), _named(sides, "f_a_proj"), _named(sides, "k_proj")
    if not decay or width is None or low is None or keys is None:
        return {}
    heads = _numbers(decay)
    return {
        "mixer": "kda",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": keys[0],
        "mixer_state": keys[0] // heads,
        "mixer_rank": low[0],
        "mixer_taps": _taps(sides),
    }


def _convolution(
    sides: _Sides, decay: tuple[int, ...], hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read a short convolution between two gates."""
    if decay or not _taps(sides) or _out(sides) != hidden or "in_proj" not in sides:
        return {}
    return {"mixer": "conv", "mixer_width": hidden, "mixer_taps": _taps(sides)}


def _rg_lru(
    sides: _Sides, _decay: tuple[int, ...], _hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read an RG-LRU, whose gates are a block for each head."""
    gate, width = _named(sides, "input_gate_weight"), _out(sides)
    if gate is None or width is None:
        return {}
    return {
        "mixer": "rg-lru",
        "mixer_width": width,
        "mixer_heads": gate[0],
        "mixer_state": 1,
        "mixer_taps": _taps(sides),
    }


def _rwkv(
    sides: _Sides, decay: tuple[int, ...], _hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the time mixing of RWKV-4."""
    width = _out(sides)
    if decay or width is None or _named(sides, "receptance") is None:
        return {}
    return {"mixer": "rwkv", "mixer_width": width, "mixer_state": 3}


def _mlstm(
    sides: _Sides, _decay: tuple[int, ...], _hidden: int, _cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read an mLSTM: queries and keys, values, the gate of its output, two gates of each head."""
    width, gate, keys = _out(sides), _named(sides, "igate_preact"), _named(sides, "k")
    if width is None or gate is None or keys is None:
        return {}
    return {
        "mixer": "mlstm",
        "mixer_width": width,
        "mixer_heads": gate[0],
        "mixer_keys": keys[0],
        "mixer_state": keys[0] // gate[0],
    }


def _lightning(
    sides: _Sides, _decay: tuple[int, ...], _hidden: int, cfg: Mapping[str, Any]
) -> dict[str, Any]:
    """Read lightning attention: q, k and v in one matrix, and the gate of its output."""
    width, gate, rows = _out(sides), _named(sides, "output_gate"), _named(sides, "qkv_proj")
    heads = size_in(cfg, ("num_attention_heads",))
    if width is None or gate is None or rows is None or heads is None:
        return {}
    keys = (rows[0] - width) // 2
    return {
        "mixer": "lightning",
        "mixer_width": width,
        "mixer_heads": heads,
        "mixer_keys": keys,
        "mixer_state": keys // heads,
    }


_READERS: tuple[
    Callable[[_Sides, tuple[int, ...], int, Mapping[str, Any]], dict[str, Any]], ...
] = (_mamba, _mamba_2, _kimi_delta, _delta, _convolution, _rg_lru, _rwkv, _mlstm, _lightning)
