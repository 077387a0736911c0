"""The rules that make two sides comparable give one result, in whatever order they are listed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunescope.analysis.comparison.equal_information import (
    RULES,
    ComparableSides,
    RewriteRule,
    apply_rules,
    drop_one_sided_modules,
    drop_one_sided_shapes,
    note_what_is_dropped,
)
from prunescope.analysis.inputs.open import open_side
from prunescope.analysis.inputs.options import Options
from prunescope.analysis.inputs.side import SidePhase
from prunescope.analysis.schema.pair_comparison import MODULES, REPLAYS, SHAPES
from prunescope.analysis.wording.sentence import sentence
from tests.analysis.comparison.test_equal_fusion import LAYERS, bare, layer
from tests.analysis.comparison.test_equal_graphs import eager, whole_graphs
from tests.analysis.comparison.test_equal_modules import FULL, HALF, without_modules
from tests.analysis.comparison.test_replacements import row_of_layers, sdpa, secret
from tests.analysis.decoder import decoder
from tests.analysis.kernels.test_bare_roles import EMBED
from tests.analysis.kernels.test_bare_roles import FUSED as BARE_LAYER
from tests.analysis.kernels.test_graphs_wrong import model
from tests.analysis.ledger.test_what_is_known import without_shapes
from tests.analysis.replays import replayed
from tests.analysis.trace.test_nsys import made
from tests.chrome import chrome, save, step

Pair = Callable[[Path], tuple[Path, Path]]  # folder -> dense and pruned trace


def traces(dense: Callable[[], Any], pruned: Callable[[], Any]) -> Pair:
    return lambda folder: (
        save(dense(), folder / "dense.json"),
        save(pruned(), folder / "pruned.json"),
    )


def graphs(folder: Path) -> tuple[Path, Path]:
    return made(folder / "dense.sqlite", eager), made(folder / "pruned.sqlite", whole_graphs)


def decoder_layers(*, fused: bool) -> dict[str, Any]:
    return chrome(step(0, *(bare(x) for i in range(LAYERS) for x in layer(i, fused=fused))))


def passes(*counts: int) -> dict[str, Any]:
    """A step of several passes, each with an embedding before as many layers."""
    return chrome(step(0, *(x for n in counts for x in (EMBED, *BARE_LAYER * n))))


PAIRS: dict[str, Pair] = {
    "shapes and modules on one side": traces(
        lambda: without_modules(decoder(FULL)), lambda: without_shapes(decoder(HALF))
    ),
    "a graph replay": traces(model, lambda: replayed(model())),
    "whole graphs": graphs,
    "layers numbered twice": traces(lambda: passes(2, 2), lambda: passes(4)),
    "fused qkv": traces(lambda: decoder_layers(fused=True), lambda: decoder_layers(fused=False)),
    "a kernel of unknown kind": traces(
        lambda: row_of_layers(lambda: (sdpa(80),)), lambda: row_of_layers(lambda: (secret(90),))
    ),
}
# What a note or the list of dropped information shows of each pair.
SHOWS = {
    "shapes and modules on one side": "only the pruned side recorded modules",
    "a graph replay": REPLAYS,
    "whole graphs": "",
    "layers numbered twice": "numbered to",
    "fused qkv": "compared as gate_up",
    "a kernel of unknown kind": "kernel_7 a step stand where",
}


@pytest.fixture(scope="module")
def read_pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SidePhase, SidePhase]]:
    pairs = {}
    for name, write in PAIRS.items():
        dense, pruned = (
            open_side(path, Options(), eager=None).read("trace")
            for path in write(tmp_path_factory.mktemp("pair"))
        )
        pairs[name] = dense, pruned
    return pairs


def contents(sides: ComparableSides) -> tuple[list[Any], ...]:
    """Everything that a rule may rewrite, as plain values."""
    return (
        list(sides.one_sided),
        *(
            [
                side.kernels.frame.to_dicts(),
                side.kernels.notes,
                side.kernels.warnings,
                side.kernels.replays,
                side.kernels.modules,
                side.kernels.shapes,
                side.side.model,
                side.diagnostics,
                side.ignored,
            ]
            for side in sides.both
        ),
    )


def noted(sides: ComparableSides) -> str:
    return " ".join(
        [*map(sentence, sides.pruned.kernels.notes), *(dropped.kind for dropped in sides.one_sided)]
    )


@pytest.mark.parametrize("name", PAIRS)
def test_each_pair_needs_a_rewrite(
    name: str, read_pairs: dict[str, tuple[SidePhase, SidePhase]]
) -> None:
    before = ComparableSides(*read_pairs[name])
    after = apply_rules(RULES, before)
    assert contents(after) != contents(before)
    assert SHOWS[name] in noted(after)


@pytest.mark.parametrize("name", PAIRS)
@settings(max_examples=25, deadline=None)
@given(rules=st.permutations(RULES))
def test_the_order_of_the_list_changes_nothing(
    name: str, read_pairs: dict[str, tuple[SidePhase, SidePhase]], rules: Sequence[RewriteRule]
) -> None:
    sides = ComparableSides(*read_pairs[name])
    assert contents(apply_rules(rules, sides)) == contents(apply_rules(RULES, sides))


def test_a_precondition_that_is_left_out_loses_a_note(
    read_pairs: dict[str, tuple[SidePhase, SidePhase]],
) -> None:
    """Noted before the view without modules is taken, the note on shapes is lost with it."""
    sides = ComparableSides(*read_pairs["shapes and modules on one side"])
    rules = [
        RewriteRule(drop_one_sided_shapes),
        RewriteRule(note_what_is_dropped, after=(drop_one_sided_shapes,)),
        RewriteRule(drop_one_sided_modules, after=(note_what_is_dropped,)),
    ]
    early, late = apply_rules(rules, sides), apply_rules(RULES, sides)
    assert [dropped.kind for dropped in early.one_sided] == [SHAPES, MODULES]
    said = "only one side recorded shapes"
    assert (said in noted(early), said in noted(late)) == (False, True)


def test_rules_that_wait_for_each_other_are_an_error(
    read_pairs: dict[str, tuple[SidePhase, SidePhase]],
) -> None:
    first, second = drop_one_sided_shapes, drop_one_sided_modules
    rules = [RewriteRule(first, after=(second,)), RewriteRule(second, after=(first,))]
    with pytest.raises(ValueError, match="wait for each other"):
        apply_rules(rules, ComparableSides(*read_pairs["fused qkv"]))
