"""A number with its interval, in as many digits as the interval bears."""

from __future__ import annotations

import pytest

from prunescope.taxonomy import numbers


@pytest.mark.parametrize(
    ("value", "ci95", "text"),
    [
        # Half of 20.984 is 10.49, two digits of which end at the units.
        (95.415, [87.956, 108.940], "95.4 [88, 109]"),
        # Half of 0.08 is 0.04, one digit; the number has three digits.
        (1.4912, [1.4512, 1.5312], "1.49 [1.45, 1.53]"),
        (1.4912, [1.49, 1.4922], "1.4912 [1.4900, 1.4922]"),
        (1234.5, [900.0, 1600.0], "1230 [900, 1600]"),
        (0.0, [-0.1, 0.1], "0.00 [\u22120.10, 0.10]"),
        (95.415, None, "95.4"),
        (95.415, [95.4, 95.4], "95.4"),
    ],
)
def test_digits_follow_the_interval(value: float, ci95: list[float] | None, text: str) -> None:
    assert numbers.measured(value, ci95) == text


def test_a_unit_stands_behind_the_number() -> None:
    assert numbers.measured(1.4912, [1.4512, 1.5312], "×") == "1.49× [1.45, 1.53]"
