"""Configs of vision transformers, which see images as tokens.

In: a config dict (ViT, DeiT, BEiT, DINOv2, CLIP's and SigLIP's vision part). Out: fields of
ModelShape, or None for another config. An image is (image / patch)² tokens and those that the model
adds; all attend to all, and nothing is cached. The convolution that makes patches, and poolers, are
not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prunescope.taxonomy.errors import PrunescopeError

# Tokens in addition to the patches, by model type: a class token, and one to distil from.
_ADDED = {"siglip_vision_model": 0, "siglip2_vision_model": 0, "deit": 2}
_MOST = 1 << 20  # tokens of an image


def vision_fields(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Read the fields of ModelShape from the config of a vision transformer.

    None means that the config is of a different kind.

    Raises:
        PrunescopeError: A size is missing or is not a number, or how many tokens an image or a
            sound is does not follow from the config.
    """
    kind = str(config.get("model_type", ""))
    hears = config.get("num_mel_bins") and not config.get("is_encoder_decoder")
    if hears or (config.get("patch_size") and config.get("vocab_size")):
        raise _unknown_tokens(f"the config of a {kind or 'model'} is of images or sound")
    if "patch_size" not in config:
        return None
    if config.get("image_size") is None:
        raise _unknown_tokens(f"a {kind or 'vision transformer'} takes images of any size")
    hidden, layers, heads = (
        _size(config, name) for name in ("hidden_size", "num_hidden_layers", "num_attention_heads")
    )
    if hidden % heads:
        raise PrunescopeError(
            f"hidden size {hidden} is not a multiple of {heads} heads", hint="check its config.json"
        )
    mlp = config.get("intermediate_size")
    gated = bool(config.get("use_swiglu_ffn"))
    if mlp is None:
        ratio = config.get("mlp_ratio", 4)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 < ratio < 1024:
            raise PrunescopeError("the config lacks intermediate_size", hint="give its config.json")
        mlp = int(hidden * ratio)
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8 if gated else mlp  # as the code of DINOv2 rounds it
    added = _ADDED.get(kind, 1) + int(config.get("num_register_tokens") or 0)
    image, patch = _size(config, "image_size"), _size(config, "patch_size")
    tokens = (image // patch) ** 2 + added
    if not 0 < tokens <= _MOST:
        raise PrunescopeError(
            f"images of {image} pixels in patches of {patch} are {tokens} tokens",
            hint="check image_size and patch_size of its config.json",
        )
    width = hidden // heads
    fields = {
        "model_type": kind, "hidden": hidden, "layers": layers, "heads": heads, "kv_heads": heads,
        "head_dim": width, "value_dim": width, "intermediate": int(mlp), "vocab": _classes(config),
        "gated": gated, "tied": True, "qkv_bias": bool(config.get("qkv_bias", True)),
        "o_bias": True, "mlp_bias": True, "norm_parameters": 2, "centred_norms": True,
        "positions": tokens, "image_tokens": tokens, "layout": "f" * layers,
    }  # fmt: skip
    return fields


def _unknown_tokens(problem: str) -> PrunescopeError:
    """Return the error for a tower whose number of tokens no config states."""
    return PrunescopeError(
        f"{problem}, and does not say how many tokens one is",
        hint="predict the language part, config.json without #, with the tokens of the image or "
        "sound in --prompt-len, and give the time of the tower as --extra-ms",
    )


def _classes(config: Mapping[str, Any]) -> int:
    """Return the outputs of the head; 1 without one.

    They are classes, or the width that images and texts share.
    """
    for name in ("num_labels", "projection_dim"):
        value = config.get(name)
        if isinstance(value, int) and value > 0:
            return value
    return 1


def _size(config: Mapping[str, Any], name: str) -> int:
    """Return a size, or the first of two equal ones. Raise PrunescopeError for another value."""
    value = config.get(name)
    if isinstance(value, list | tuple) and value and len(set(map(str, value))) == 1:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 2**24:
        raise PrunescopeError(
            f"{name} of the config of a vision transformer is {str(value)[:40]!r}",
            hint="give its config.json, with hidden_size, num_hidden_layers, num_attention_heads, "
            "image_size and patch_size",
        )
    return value
