"""The request that is being scored: the tokens from which random decisions follow.

In: token ids [.., S]. Out: a Request, for as long as it is scored. The score of a request is thus
the same after any others, in any order. A stream of random numbers would instead go on from one
request to the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunescope.tracer.model import compat


@dataclass(frozen=True, eq=False)
class Request:
    """A sequence that is scored, named by its tokens.

    The same tokens scored again are another request, for which the same decisions are made from the
    start.
    """

    name: str

    @classmethod
    def from_ids(cls, ids: torch.Tensor) -> Request:
        """Return a request that is named by the digest of its token ids."""
        return cls(hashlib.sha256(repr(ids.tolist()).encode()).hexdigest())


_CURRENT: ContextVar[Request | None] = ContextVar("request", default=None)


def current_request() -> Request | None:
    """Return the request that is being scored; None outside of scoring."""
    return _CURRENT.get()


@contextmanager
def decided_by(ids: torch.Tensor) -> Iterator[None]:
    """Derive random decisions from the seed and these token ids alone while the context is open.

    Args:
        ids: The token ids of the request, of any shape.
    """
    token = _CURRENT.set(Request.from_ids(ids))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def decided_by_request(model: nn.Module) -> Iterator[None]:
    """Derive random decisions from the request of each forward while the context is open.

    This is `decided_by` for forwards that other code calls. A forward on an empty cache begins the
    request of its token ids; forwards on a filled cache belong to that request.

    Args:
        model: The model whose forwards are watched.
    """

    def begin(_model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = compat.cache_in(kwargs)
        if isinstance(ids, torch.Tensor) and (cache is None or not compat.tokens_in(cache)):
            _CURRENT.set(Request.from_ids(ids))

    token = _CURRENT.set(None)
    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _CURRENT.reset(token)
