"""The request that is being scored: the tokens that random decisions follow from.

In: token ids [.., S]. Out: a Request, for as long as it is scored. So the score of a request is the
same after any others, in any order: a stream of random numbers would go on from one to the next.
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
    """A sequence that is scored, named by its tokens. The same tokens scored again are another
    request, for which the same decisions are made from the start."""

    name: str

    @classmethod
    def of(cls, ids: torch.Tensor) -> Request:
        """The request of these token ids."""
        return cls(hashlib.sha256(repr(ids.tolist()).encode()).hexdigest())


_CURRENT: ContextVar[Request | None] = ContextVar("request", default=None)


def current_request() -> Request | None:
    """The request being scored; None outside of scoring."""
    return _CURRENT.get()


@contextmanager
def decided_by(ids: torch.Tensor) -> Iterator[None]:
    """Inside, random decisions follow from the seed and these token ids alone, whatever was decided
    before."""
    token = _CURRENT.set(Request.of(ids))
    try:
        yield
    finally:
        _CURRENT.reset(token)


@contextmanager
def decided_by_request(model: nn.Module) -> Iterator[None]:
    """Inside, `decided_by` for forwards that are not called here: one on an empty cache begins the
    request of its token ids, and those on a filled cache belong to it."""

    def begin(_model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        cache = compat.cache_in(kwargs)
        if isinstance(ids, torch.Tensor) and (cache is None or not compat.tokens_in(cache)):
            _CURRENT.set(Request.of(ids))

    token = _CURRENT.set(None)
    handle = model.register_forward_pre_hook(begin, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
        _CURRENT.reset(token)
