"""Two sequences of products aligned by what they multiply, and the parts that repeat in one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunescope.analysis.kernels.sequence import Product, align_products, find_repeats

ATTENTION = Product("attention", (("batch", 16), ("m", 128), ("n", 128), ("k", 32)))


def linear(n: int, k: int, m: int = 256) -> Product:
    return Product("linear", (("batch", 1), ("m", m), ("n", n), ("k", k)))


MLP = [linear(704, 256), linear(704, 256), linear(256, 704)]
ATTENDING = [*[linear(256, 256)] * 3, ATTENTION, linear(256, 256)]
LAYER, HEAD = [*ATTENDING, *MLP], linear(2000, 256)


def unpaired(old: list[Product], new: list[Product]) -> tuple[list[int], list[int]]:
    """The places of both sides that stay alone."""
    pairs = align_products(old, new)
    alone = [{*range(len(side))} - {pair[i] for pair in pairs} for i, side in enumerate((old, new))]
    return sorted(alone[0]), sorted(alone[1])


def test_attention_left_out_of_two_layers_moves_nothing_else() -> None:
    """Layers 2 and 3 of six keep their MLP: products 16 to 20 and 24 to 28 are gone."""
    pruned = [*LAYER * 2, *MLP * 2, *LAYER * 2, HEAD]
    assert unpaired([*LAYER * 6, HEAD], pruned) == ([*range(16, 21), *range(24, 29)], [])


def test_a_narrower_width_pairs_and_the_maps_that_came_with_it_do_not() -> None:
    """256 became 192 everywhere; two products of 192 by 192 a layer have no partner."""
    into, out = linear(256, 192), linear(192, 256)
    residual = linear(192, 192)
    mlp = [linear(704, 192), linear(704, 192), linear(192, 704)]
    layer = [into, into, into, ATTENTION, out, residual, *mlp, residual]
    gone, added = unpaired([*LAYER * 6, HEAD], [*layer * 6, linear(2000, 192)])
    assert (gone, added) == ([], [at for i in range(6) for at in (10 * i + 5, 10 * i + 9)])


def test_two_products_through_a_rank_have_the_partner_that_they_replace() -> None:
    old = [linear(2048, 512), linear(512, 2048)]
    new = [linear(64, 512), linear(2048, 64), linear(512, 2048)]
    assert align_products(old, new) == [(0, 0), (0, 1), (1, 2)]


def test_a_narrower_mlp_is_no_rank_of_the_projection_before_it() -> None:
    """[64, 48] after [48, 64] multiplies as 64 by 64 does; both have partners of their own."""
    old = [linear(64, 64), linear(96, 64), linear(64, 96)]
    new = [linear(64, 64), linear(48, 64), linear(64, 48)]
    assert align_products(old, new) == [(0, 0), (1, 1), (2, 2)]


def test_attention_of_other_queries_and_keys_is_no_partner() -> None:
    """A decoder's attention to an encoder (32 by 96) never takes the place of 128 by 128."""
    cross = Product("attention", (("batch", 16), ("m", 32), ("n", 96), ("k", 32)))
    assert align_products([ATTENTION, HEAD], [cross, HEAD]) == [(1, 1)]


def test_parts_that_repeat_are_numbered_and_what_stands_between_them_is_not() -> None:
    """Two layers of one kind, a product of its own, three of another kind."""
    other = [linear(512, 512), linear(1024, 512), linear(512, 1024)]
    numbers = find_repeats([*LAYER * 2, linear(512, 256), *other * 3, HEAD])
    layers = [0] * 8 + [1] * 8 + [None] + [2] * 3 + [3] * 3 + [4] * 3 + [None]
    assert numbers == layers


@pytest.mark.parametrize("sequence", [[], [HEAD], [HEAD, ATTENTION], [HEAD] * 5])
def test_what_does_not_repeat_has_no_layers(sequence: list[Product]) -> None:
    assert find_repeats(sequence) == [None] * len(sequence)


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_what_is_left_of_a_stack_pairs_whatever_was_removed(kept: list[bool]) -> None:
    pruned = [product for keep in kept if keep for product in LAYER]
    pairs = align_products(LAYER * len(kept), pruned)
    assert [j for _, j in pairs] == [*range(len(pruned))]
    assert all((LAYER * len(kept))[i] == pruned[j] for i, j in pairs)
    assert [i for i, _ in pairs] == sorted({i for i, _ in pairs})
