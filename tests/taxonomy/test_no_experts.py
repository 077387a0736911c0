"""A layer of experts that has none is refused, not divided by."""

from __future__ import annotations

import pytest

from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.expert_routing import token_shares


def test_a_layer_of_experts_without_any_is_refused() -> None:
    with pytest.raises(PrunescopeError, match="has none"):
        token_shares(None, "decode", experts=0, per_token=0)
