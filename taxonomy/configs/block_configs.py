"""Configs that describe each layer by itself, as lists with one entry per layer.

In: a config with `block_configs` (DeciLM, Nemotron-NAS: what Puzzle writes) or `ffn_multipliers`
(OpenELM). Out: the keys that other configs have, each a list: 0 where a layer has no such sublayer.
Source: configuration_decilm.py, block_config.py and modeling_decilm.py of
huggingface.co/nvidia/Llama-3_1-Nemotron-51B-Instruct; modeling_openelm.py of huggingface.co/apple.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.configs.architecture_table import ATTENTION_KINDS, MLP_KINDS
from prunescope.taxonomy.errors import PrunescopeError

_MULTIPLE = 256  # channels are rounded up to it


def as_lists(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config with lists in place of its descriptions of blocks; a copy if it has none.

    Raises:
        PrunescopeError: A block is not described as its format asks.
    """
    blocks, multipliers = cfg.get("block_configs"), cfg.get("ffn_multipliers")
    if isinstance(blocks, list) and blocks:
        return {**cfg, **_config_of_blocks(cfg, blocks)}
    if isinstance(multipliers, list) and multipliers:
        return {**cfg, "intermediate_size": _widths_of_multipliers(cfg, multipliers)}
    return dict(cfg)


def _config_of_blocks(cfg: Mapping[str, Any], blocks: list[Any]) -> dict[str, Any]:
    """Return the keys of other configs for `block_configs`, each with an entry per block."""
    heads, hidden = _whole(cfg, "num_attention_heads"), _whole(cfg, "hidden_size")
    kv_heads: list[int] = []
    widths: list[int] = []
    kinds: list[tuple[str, str]] = []
    for number, block in enumerate(blocks):
        mixing, ffn = _part(block, "attention", number), _part(block, "ffn", number)
        kind = _kind(mixing), _kind(ffn)
        kinds.append(kind)
        groups = heads
        if kind[0] == "usual":
            groups = heads // (_whole(mixing, "n_heads_in_group", number) or heads)
        kv_heads.append(groups)
        widths.append(_width(ffn, hidden, number) if kind[1] == "usual" else 0)
    if not any(widths):
        widths = [hidden] * len(blocks)  # no block has channels: their kinds say so
    return {
        "num_key_value_heads": kv_heads,
        "intermediate_size": widths,
        ATTENTION_KINDS: [attention for attention, _ in kinds],
        MLP_KINDS: [ffn for _, ffn in kinds],
    }


def _kind(part: Mapping[str, Any]) -> str:
    if part.get("no_op"):
        return "none"
    return "linear" if part.get("replace_with_linear") else "usual"


def _width(ffn: Mapping[str, Any], hidden: int, number: int) -> int:
    """Return the channels of a block's MLP: `intermediate_size`, else 2/3 of ffn_mult times hidden.

    The latter is int(2·ffn_mult·h/3), rounded up to a multiple of 256.
    """
    if ffn.get("intermediate_size") is not None:
        return _whole(ffn, "intermediate_size", number)
    width = int(2 * _factor(ffn.get("ffn_mult"), f"ffn_mult of block {number}") * hidden / 3)
    return _MULTIPLE * -(-width // _MULTIPLE)


def _widths_of_multipliers(cfg: Mapping[str, Any], multipliers: list[Any]) -> list[int]:
    """Return the channels of each layer of OpenELM.

    They are the nearest multiple of the divisor, and one multiple more if that is a tenth too
    small.
    """
    hidden = _whole(cfg, "model_dim")
    divisor = _whole(cfg, "ffn_dim_divisor") if "ffn_dim_divisor" in cfg else _MULTIPLE
    widths = []
    for number, factor in enumerate(multipliers):
        width = _factor(factor, f"ffn_multipliers of layer {number}") * hidden
        rounded = max(divisor, int(width + divisor / 2) // divisor * divisor)
        widths.append(rounded + divisor * (rounded < 0.9 * width))
    return widths


def _part(block: Any, name: str, number: int) -> Mapping[str, Any]:
    """Return the attention or the ffn of a block. Raise PrunescopeError if the block has none."""
    part = block.get(name) if isinstance(block, Mapping) else None
    if not isinstance(part, Mapping):
        raise PrunescopeError(
            f"block_configs of the config has no {name} in block {number}",
            hint="check its config.json: each block has an attention and an ffn",
        )
    return part


def _whole(part: Mapping[str, Any], name: str, number: int | None = None) -> int:
    """Return a positive whole number of a config. Raise PrunescopeError for another value."""
    value = part.get(name)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**40:
        where = "the config" if number is None else f"block {number} of the config"
        raise PrunescopeError(
            f"{name} of {where} is {str(value)[:40]!r}, not a positive whole number",
            hint="check its config.json",
        )
    return value


def _factor(value: Any, name: str) -> float:
    """Return a factor below 1,024 as a float. Raise PrunescopeError for another value."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1024:
        raise PrunescopeError(
            f"{name} of the config is {str(value)[:40]!r}, not a factor",
            hint="check its config.json",
        )
    return float(value)
