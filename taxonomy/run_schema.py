"""What each field of a run.json may hold: the file comes from strangers, and analysis relies on it.

In: the plain values that the JSON parser gave. Out: the place of the first wrong one, or None.
Unknown fields are let through, but hold no number or string that cannot be written again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

# Nothing of a real model or machine comes near these; loops and sums of 64 bits stay short of them.
MAX_COUNT = 1 << 52
MAX_LAYERS = 10_000
MAX_DEPTH = 64
_MAX_NAME = 256
_MAX_PHASES = 16
_MAX_SAMPLES = 20_000
_MAX_NAMES = 64

Check = Callable[[Any], bool]


@dataclass(frozen=True)
class _Fields:
    """An object: its known fields have these checks where they are present."""

    checks: Mapping[str, Any]


@dataclass(frozen=True)
class _Each:
    """An object with names of any kind, or a list: every value has this check."""

    check: Any
    kind: type
    most: int = 1 << 20


@dataclass(frozen=True)
class _Maybe:
    """The check, or null."""

    check: Any


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_NAME


def _is_file(value: Any) -> bool:
    """A file beside the manifest: no folder in it, and nothing that leads out of the run."""
    return _is_name(value) and value not in (".", "..") and not {"/", "\\", "\0"} & set(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30


def _is_interval(value: Any) -> bool:
    """Two numbers."""
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value))


def _is_share(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _whole(least: int, most: int = MAX_COUNT) -> Check:
    def is_whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most

    return is_whole


def _one_of(*names: str) -> Check:
    return lambda value: isinstance(value, str) and value in names


_COUNT, _SIZE = _whole(0), _whole(1)
_NUMBER, _NAME = _Maybe(_is_number), _Maybe(_is_name)
_CI95 = _Maybe(_is_interval)
_LAYER = _whole(0, MAX_LAYERS)
_NUMBERS = _Each(_is_number, dict)
_CLOCKS = _Fields({"before": _Maybe(_is_object), "after": _Maybe(_is_object)})
_MATRIX = _Fields(
    {
        "name": _is_text,
        "layer": _Maybe(_LAYER),
        "role": _Maybe(_is_name),
        "shape": _Each(_COUNT, list),
        "zeros": _is_share,
        "groups_2_of_4": _Maybe(_is_share),
        "zero_rows": _is_share,
        "zero_columns": _is_share,
    }
)
_COUNTED = _Fields({"unit": _is_name, "active": _Each(_COUNT, list), "total": _Each(_COUNT, list)})
_WEIGHT_STATS = _Fields(
    {"matrices": _Each(_MATRIX, list), "dynamic": _Each(_Each(_COUNTED, dict), dict)}
)
_RATES = {
    "dense_flop_per_s": _NUMBERS,
    "byte_per_s": _Maybe(_is_number),
    "disturbed": _Each(_is_name, list, _MAX_NAMES),
}
_PEAKS = _Fields(
    {
        **_RATES,
        "kernel_floor_ns": _Maybe(_is_number),
        "before": _Fields(_RATES),
        "after": _Fields(_RATES),
        "measurements": _Each(_Fields(_RATES), list, _MAX_NAMES),
        "reached": _NUMBERS,
    }
)
_CALIBRATION = _Fields(
    {
        "name": _is_text,
        "dense_flop_per_s": _NUMBERS,
        "byte_per_s": _Maybe(_is_number),
        "measured": _Maybe(
            _Fields(
                {
                    "threads": _Maybe(_COUNT),
                    "spread": _Maybe(_is_object),
                    "disturbed": _Each(_is_name, list, _MAX_NAMES),
                }
            )
        ),
    }
)
_SHAPE = _Fields(
    {
        "model_type": _is_name,
        **dict.fromkeys(("hidden", "heads", "kv_heads", "head_dim", "value_dim", "vocab"), _SIZE),
        "layers": _whole(1, MAX_LAYERS),
        **dict.fromkeys(
            ("sliding_layers", "other_layers", "moe_layers", "mixer_layers", "norms"), _LAYER
        ),
        "mixer": _one_of("", "linear", "ssm", "conv"),
        "layout": _is_text,
        **dict.fromkeys(
            ("intermediate", "experts", "experts_per_token", "expert_intermediate", "positions",
             "shared_intermediate", "rope_dim", "norm_parameters", "qk_norm_parameters",
             "mixer_width", "mixer_heads", "mixer_keys", "mixer_state", "mixer_taps",
             "mixer_extras"),
            _COUNT,
        ),
        **dict.fromkeys(("window", "q_rank", "kv_rank"), _Maybe(_SIZE)),
        **dict.fromkeys(
            ("gated", "tied", "qkv_bias", "o_bias", "mlp_bias", "head_bias", "router_bias",
             "shared_gate", "sinks", "embedding_norm", "query_gate", "parallel", "centred_norms"),
            _is_switch,
        ),
    }
)  # fmt: skip
_PLACEMENT = _Fields(
    {
        "samples": _COUNT,
        "steps": _COUNT,
        "cost_ns": _COUNT,
        "retaken": _COUNT,
        "disturbed": _COUNT,
        "reasons": _Each(_is_name, list, _MAX_NAMES),
        "steps_disturbed": _Each(_is_name, list, _MAX_NAMES),
        "switches": _COUNT,
    }
)
_PHASE = _Fields(
    {
        "batch": _SIZE,
        "prompt_len": _SIZE,
        "positions": _Each(_COUNT, list),
        "context": _SIZE,
        **dict.fromkeys(("logits", "cache", "attention", "mode", "interleaved"), _is_name),
        "steps": _SIZE,
        "tokens_per_step": _SIZE,
        "warmup": _COUNT,
        "samples_ns": _Each(_SIZE, list, _MAX_SAMPLES),
        "trace": _is_file,
        "sha256": _is_name,
        "eager_trace": _Maybe(_is_file),
        "peak_memory_bytes": _Maybe(_COUNT),
        "kv_bytes": _Maybe(_COUNT),
        "placements": _Each(_PLACEMENT, list, _MAX_SAMPLES),
        "placements_requested": _Maybe(_SIZE),
    }
)
_RECOVERED = _Fields(
    {
        **dict.fromkeys(
            ("steps", "rank", "batch", "length", "steps_done", "resumed_from"), _Maybe(_COUNT)
        ),
        **dict.fromkeys(("lr", "epochs", "seed"), _NUMBER),
        **dict.fromkeys(("target", "train_sha256", "eval_sha256", "weights_sha256"), _NAME),
        **dict.fromkeys(("text", "stopped"), _Maybe(_is_text)),
        "notes": _Each(_is_text, list),
        "routers": _Each(
            _Fields({"unit": _NAME, "trained": _COUNT, "kept_by_layer": _Maybe(_is_object)}), list
        ),
        "losses": _Maybe(
            _Fields(
                {
                    "train": _Each(_is_interval, list),
                    "held_out": _Maybe(
                        _Fields({"before": _NUMBER, "after": _NUMBER, "tokens": _Maybe(_COUNT)})
                    ),
                }
            )
        ),
    }
)
_TASK = _Fields(
    {
        "metric": _is_text,
        "value": _NUMBER,
        "stderr": _NUMBER,
        "higher_is_better": _Maybe(_is_switch),
        "samples": _Maybe(_COUNT),
        "metrics": _Each(_Fields({"value": _NUMBER, "stderr": _NUMBER}), dict),
    }
)
_ON_A_TEXT = {
    "text": _Maybe(
        _Fields(
            {
                **dict.fromkeys(("source", "part"), _Maybe(_is_text)),
                "sha256": _NAME,
                "seed": _NUMBER,
                "tokens": _Maybe(_COUNT),
            }
        )
    ),
    "scoring": _NAME,
    **dict.fromkeys(("context", "stride", "scored_tokens", "scored_bytes"), _Maybe(_COUNT)),
    **dict.fromkeys(
        ("nats_per_token", "perplexity", "bits_per_byte", "dense_perplexity", "perplexity_rel",
         "kl", "agreement", "control_perplexity", "perplexity_rel_recovered"),
        _NUMBER,
    ),
    **dict.fromkeys(
        ("perplexity_ci95", "perplexity_rel_ci95", "kl_ci95", "agreement_ci95",
         "perplexity_rel_recovered_ci95"),
        _CI95,
    ),
}  # fmt: skip
_QUALITY = _Fields(
    {
        **_ON_A_TEXT,
        "weights_fingerprint": _NAME,
        "other_text": _Maybe(_Fields(_ON_A_TEXT)),
        "tasks": _Each(_TASK, dict),
        "tasks_change": _Maybe(
            _Fields(
                {"signed": _NUMBER, "signed_ci95": _CI95, "absolute": _NUMBER, "by_task": _NUMBERS}
            )
        ),
    }
)
_RUN = _Fields(
    {
        "tool": _is_name,
        "variant": _one_of("dense", "pruned"),
        "model": _Fields(
            {
                "id": _Maybe(_is_text),
                "source": _Maybe(_is_name),
                "architecture": _Maybe(_is_text),
                "config": _Maybe(_is_object),
                "shape": _Maybe(_SHAPE),
                "notes": _Each(_is_text, list),
            }
        ),
        "phases": _Each(_PHASE, dict, _MAX_PHASES),
        "dtype": _is_name,
        "device": _Fields(
            {
                "kind": _Maybe(_is_name),
                "name": _Maybe(_is_text),
                "threads": _Maybe(_COUNT),
                "properties": _Maybe(_is_object),
                "peaks": _Maybe(_PEAKS),
                "clocks": _Maybe(_CLOCKS),
                "calibration": _Maybe(_CALIBRATION),
            }
        ),
        "versions": _Each(_is_text, dict),
        "seeds": _Each(_whole(-MAX_COUNT * 2**12, MAX_COUNT * 2**12), dict),
        "argv": _Each(_is_text, list),
        "weight_bytes": _Maybe(_COUNT),
        "parameters": _Maybe(_COUNT),
        "layer_map": _Maybe(_Each(_LAYER, list, MAX_LAYERS)),
        "pruning": _Maybe(
            _Fields(
                {
                    "method": _Maybe(_is_text),
                    "sparsity": _Maybe(_is_share),
                    "knobs": _Maybe(_is_object),
                    "selection": _Maybe(_is_name),
                    "removed": _Maybe(_Each(_Each(_LAYER, list, MAX_LAYERS), dict)),
                    "notes": _Maybe(_Each(_is_text, list)),
                    "theory": _Maybe(_Each(_is_object, dict)),
                    "kept": _Maybe(_is_object),
                    "backend": _Maybe(_is_name),
                    "calibration": _Maybe(_is_object),
                    "match": _Maybe(_Fields({"by": _Maybe(_is_name), "own": _Maybe(_is_number)})),
                    "parts": _Each(_is_object, list),
                    "recovery": _Maybe(_RECOVERED),
                }
            )
        ),
        "census": _Maybe(_WEIGHT_STATS),
        "twin": _Maybe(_Fields({"path": _is_text, "sha256": _is_name})),
        "quality": _Maybe(_QUALITY),
        "inputs": _Maybe(_Fields({"source": _Maybe(_is_text)})),
        "timing": _Maybe(_Fields({"notes": _Maybe(_Each(_is_text, list))})),
    }
)


def first_wrong(plain: Mapping[str, Any]) -> str | None:
    """Where the first value stands that a manifest cannot have, as `phases.prefill.batch`."""
    return _unwritable(plain) or _wrong(plain, _RUN, "")


def _wrong(value: Any, check: Any, where: str) -> str | None:
    if isinstance(check, _Maybe):
        return None if value is None else _wrong(value, check.check, where)
    inner: Iterable[tuple[str, Any, Any]]
    if isinstance(check, _Fields):
        if not isinstance(value, dict):
            return where
        inner = ((k, value[k], c) for k, c in check.checks.items() if k in value)
    elif isinstance(check, _Each):
        if not isinstance(value, dict | list) or not isinstance(value, check.kind):
            return where
        if len(value) > check.most:
            return where
        items = value.items() if isinstance(value, dict) else enumerate(value)
        inner = ((str(k), v, check.check) for k, v in items)
    else:
        return None if check(value) else where
    found = (_wrong(v, c, f"{where}.{k[:40]}" if where else k[:40]) for k, v, c in inner)
    return next((place for place in found if place is not None), None)


def _unwritable(plain: Mapping[str, Any]) -> str | None:
    """The field with a number or a string that JSON and UTF-8 lack, or that is nested too deep."""
    for name, value in plain.items():
        level = [name, value]
        for _ in range(MAX_DEPTH):
            if not all(map(_can_be_written, level)):
                return name[:40].encode("ascii", "replace").decode()
            level = [inner for outer in level for inner in _inside(outer)]
            if not level:
                break
        else:
            return name[:40]
    return None


def _can_be_written(value: Any) -> bool:
    if isinstance(value, str):
        return value.isascii() or not any("\ud800" <= c <= "\udfff" for c in value)
    return not isinstance(value, float) or math.isfinite(value)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []
