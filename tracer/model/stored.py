"""What a model's tensors store: in, a tensor or a model; out, plain tensors and a fingerprint."""

from __future__ import annotations

import hashlib

import torch


def stored_tensors(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that hold a tensor's numbers: itself, or a packed (2:4) weight's parts.

    A packed one answers to few operations: it cannot be flattened, compared or moved to the CPU.
    """
    parts = [getattr(tensor, name, None) for name in ("packed", "meta")]
    return [part for part in parts if isinstance(part, torch.Tensor)] or [tensor]


def weights_fingerprint(model: torch.nn.Module) -> str:
    """Names the weights of a model: sha256 of names, shapes, dtypes and 4,096 evenly spread numbers
    of each tensor. Two captures with one fingerprint ran the same object."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        for stored in stored_tensors(tensor):
            flat = stored.detach().flatten()
            picked = flat[:: max(1, flat.numel() // 4096)].float().cpu().contiguous()
            digest.update(picked.numpy().tobytes())
    return digest.hexdigest()
