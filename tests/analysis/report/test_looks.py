"""One palette: what is told apart in colour is told apart in grey and by the colour-blind.

Colours become lightness and chroma of CIELAB (D65), as they are seen with all cones or without one
(matrices of Machado, Oliveira and Fernandes 2009, severity 1). Two looks are told apart by another
hatch or marker, or by a distance that is seen at a glance.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations

import pytest

from prunescope.analysis.report import hatches, looks
from prunescope.analysis.report.looks import Look, family_looks, ink, luminance
from prunescope.analysis.schema.categories import CATEGORIES
from prunescope.analysis.summary.labels import CHANGES
from prunescope.taxonomy.families import pruning_families

_MACHADO = {
    "all cones": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "no long ones": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
                     (-0.003882, -0.048116, 1.051998)),
    "no middle ones": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                       (-0.011820, 0.042940, 0.968881)),
    "no short ones": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602),
                      (0.004733, 0.691367, 0.303900)),
    "grey": ((0.2126, 0.7152, 0.0722),) * 3,
}  # fmt: skip
_APART = 10.0  # of a lightness from 0 to 100: about four times what can just be told
_LEAST = 4.5  # contrast of letters to their ground, by WCAG 2


def seen(colour: str, by: str) -> tuple[float, float, float]:
    """CIELAB of a colour as it is seen."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    r, g, b = (
        min(1.0, max(0.0, sum(w * c for w, c in zip(row, linear, strict=True))))
        for row in _MACHADO[by]
    )
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def distance(first: str, second: str, by: str) -> float:
    pairs = zip(seen(first, by), seen(second, by), strict=True)
    return sum((a - b) ** 2 for a, b in pairs) ** 0.5


def alike(named: dict[str, Look], *, second: str) -> Iterable[tuple[str, str, str]]:
    """Pairs that look alike to someone, though `second`, hatch or marker, is looked at too."""
    for (a, one), (b, other) in combinations(named.items(), 2):
        if one is not other and getattr(one, second) == getattr(other, second):
            for by in _MACHADO:
                if distance(one.colour, other.colour, by) < _APART:
                    yield a, b, by


def families() -> dict[str, Look]:
    """Every family and four methods of one's own."""
    labels = [(family.id, family.id) for family in pruning_families()]
    return family_looks([*labels, *((f"own {i}", f"own.py:{i}") for i in range(4))])


@pytest.mark.parametrize(
    "named",
    [looks.ROWS, looks.BOUNDS, looks.CATEGORIES, dict(enumerate(looks.PARTS)), families(),
     {"dense": looks.DENSE, "pruned": looks.PRUNED}],
    ids=["rows", "bounds", "categories", "parts", "families", "sides"],
)  # fmt: skip
def test_bars_are_told_apart(named: dict[str, Look]) -> None:
    assert list(alike(named, second="hatch")) == []


@pytest.mark.parametrize(
    "named", [looks.KINDS, dict(enumerate(looks.SERIES)), families()],
    ids=["kinds", "series", "families"],
)  # fmt: skip
def test_points_are_told_apart(named: dict[str, Look]) -> None:
    assert list(alike(named, second="marker")) == []


def test_colours_of_timelines_differ_without_hatches() -> None:
    every = [look.colour for look in looks.KINDS.values()]
    assert min(distance(a, b, "all cones") for a, b in combinations(every, 2)) > _APART


def test_every_row_of_the_ledger_and_every_category_has_a_look() -> None:
    assert {*CHANGES, "promised"} == set(looks.ROWS)
    assert {*CATEGORIES, "gemm"} == set(looks.CATEGORIES)
    assert len({look.colour for look in looks.ROWS.values()}) == len(looks.ROWS)


def test_a_family_looks_the_same_whatever_stands_beside_it() -> None:
    every = families()
    alone = family_looks([("static-nk", "static-nk")])
    assert alone["static-nk"] == every["static-nk"]
    first = family_looks([("Ours", "own.py:ours"), ("static-m", "static-m")])
    assert first["static-m"] == every["static-m"] and first["Ours"] == every["own 0"]


def test_variants_of_a_family_share_its_colour() -> None:
    plain, other = family_looks([("a", "static-m"), ("a (select)", "static-m")]).values()
    assert plain.colour == other.colour
    assert plain.hatch != other.hatch and plain.marker != other.marker


def test_a_display_name_has_the_look_of_its_family() -> None:
    assert family_looks([("NK", "static-nk")])["NK"] == families()["static-nk"]


def test_strokes_of_what_is_no_evidence_are_no_hatch_of_a_palette() -> None:
    groups = (looks.ROWS, looks.BOUNDS, looks.CATEGORIES, looks.KINDS, families())
    used = {look.hatch for group in groups for look in group.values()}
    assert used.isdisjoint(hatches.HATCHES.values())


def test_numbers_in_bars_can_be_read() -> None:
    for look in (*looks.CATEGORIES.values(), *looks.ROWS.values()):
        ground, letters = luminance(look.colour), 1.0 if ink(look.colour) == "white" else 0.0
        high, low = max(ground, letters), min(ground, letters)
        assert (high + 0.05) / (low + 0.05) >= _LEAST
