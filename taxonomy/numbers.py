"""Numbers as text: ns, bytes, shares and ratios in; text with a unit out. None becomes "–"."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct

from prunescope.taxonomy.words import factor

UNKNOWN = "–"
MINUS = "−"
_TWO_DIGITS = 3.54  # of half an interval: from 3.55 on one digit of it is enough
_MOST_MORE = 3  # digits of an end beyond those: what is still equal then is equal


class Scale(Struct, frozen=True):
    """One unit for a whole column of times: `per` ns in a unit, `decimals` shown."""

    unit: str
    per: float
    decimals: int

    def text(self, ns: float | None, *, signed: bool = False) -> str:
        """Return a time without its unit; `signed` puts a plus before what is above zero."""
        if ns is None or not math.isfinite(ns):
            return UNKNOWN
        return _signed(ns / self.per, f".{self.decimals}f", signed=signed)

    def interval(self, ci95: list[float] | None) -> str:
        """Return `[low, high]` in the unit of the column."""
        return interval(ci95, self.text)


def scale(values: Iterable[float | None]) -> Scale:
    """Return the unit in which the largest of the times (ns) has three to six digits."""
    known = [abs(v) for v in values if v is not None and math.isfinite(v)]
    top = max(known, default=0.0)
    if top >= 1e10:
        return Scale("s", 1e9, 3)
    if top >= 1e5:
        return Scale("ms", 1e6, 1 if top >= 1e9 else 2 if top >= 1e8 else 3)
    return Scale("µs", 1e3, 2 if top < 1e4 else 1)


def time(ns: float | None, *, signed: bool = False) -> str:
    """Return a time with a unit that suits it."""
    if ns is None:
        return UNKNOWN
    unit = scale([ns])
    return f"{unit.text(ns, signed=signed)} {unit.unit}"


def brief_time(ns: float | None) -> str:
    """Return a time as it is said: three significant digits, in s, ms or µs."""
    if ns is None or not math.isfinite(ns):
        return UNKNOWN
    size = abs(ns)
    unit, per = ("s", 1e9) if size >= 9.995e9 else ("ms", 1e6) if size >= 999_500 else ("µs", 1e3)
    value = size / per
    decimals = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{_signed(ns / per, f'.{decimals}f', signed=False)} {unit}"


def ratio(value: float | None) -> str:
    """Return a speedup, dense over pruned: `1.33×`."""
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.2f}×"


def ratios(ci95: list[float] | None) -> str:
    """Return the interval of a speedup: `[1.14×, 1.17×]`."""
    return interval(ci95, ratio)


class RoundedEstimate(Struct, frozen=True):
    """A value and its 95 % interval, with the digits that the interval leaves meaning to.

    The ends are rounded as the Particle Data Group rounds an error, here half of the interval: to
    one significant digit, or to two where they are at most 35. The value has three, at most one
    decimal more than the ends and no less than they have: `95.4 [88, 109]`. Where rounding would
    move an end past the value, or onto or past what the value is compared with, the ends have more
    digits: a speedup of `[0.97, 1.86]` is not `[1.0, 1.9]`.

    Attributes:
        value: The value.
        ci95: Its interval; None where it has none.
        against: What the value is compared with, such as 1 for a speedup; None: nothing.
    """

    value: float
    ci95: Sequence[float] | None = None
    against: float | None = None

    @property
    def end_decimals(self) -> int:
        """The decimals of the ends; below zero they are rounded to tens or hundreds."""
        half = abs(self.ci95[1] - self.ci95[0]) / 2 if self.ci95 else 0.0
        if not half:
            return self._three_digits
        digits, _, power = f"{half:.2e}".partition("e")
        fewest = (1 if float(digits) <= _TWO_DIGITS else 0) - int(power)
        enough = (fewest + more for more in range(_MOST_MORE) if self._is_kept(fewest + more))
        return next(enough, fewest + _MOST_MORE)

    def _is_kept(self, end_decimals: int) -> bool:
        """Return whether rounded ends are on the side of the value, and of `against`, they are on.

        An end that is equal to what it is compared with stays so.
        """
        value, against = round(self.value, self._decimals_beside(end_decimals)), self.against
        for end in self.ci95 or ():
            shown = round(end, end_decimals)
            if _side(end, self.value) * _side(shown, value) < 0:
                return False
            if against is not None and _side(end, against) != _side(shown, against):
                return False
        return True

    def _decimals_beside(self, end_decimals: int) -> int:
        return max(end_decimals, min(self._three_digits, end_decimals + 1))

    @property
    def _three_digits(self) -> int:
        return 2 - int(f"{self.value:.2e}".partition("e")[2]) if self.value else 0

    @property
    def decimals(self) -> int:
        """The decimals of the value."""
        if not self.ci95:
            return max(self._three_digits, 0)
        return self._decimals_beside(self.end_decimals)

    @property
    def text(self) -> str:
        """The value alone: `95.4`."""
        return _rounded(self.value, self.decimals)

    @property
    def interval(self) -> str:
        """The interval alone: `[88, 109]`; empty without one, or where both ends are the value."""
        if not self.ci95 or self.ci95[0] == self.ci95[1]:
            return ""
        low, high = (_rounded(end, self.end_decimals) for end in self.ci95)
        return f"[{low}, {high}]"

    def __str__(self) -> str:
        """Return the value with its interval."""
        return f"{self.text} {self.interval}".strip()


def estimate(
    value: float | None, ci95: Sequence[float] | None = None, *, against: float | None = None
) -> RoundedEstimate | None:
    """Return an estimate; None for a value that is unknown or not finite.

    An interval with an end that is not finite counts as none. `against` is what the value is
    compared with.
    """
    if value is None or not math.isfinite(value):
        return None
    is_known = ci95 is not None and all(map(math.isfinite, ci95))
    return RoundedEstimate(value, ci95 if is_known else None, against)


def _side(value: float, of: float) -> int:
    return (value > of) - (value < of)


def _rounded(value: float, decimals: int) -> str:
    text = f"{round(value, decimals):.{max(decimals, 0)}f}"
    return text.replace("-", MINUS) if float(text) else text.lstrip("-")  # no "-0.00"


def interval(ci95: Sequence[float] | None, form: Callable[[float], str]) -> str:
    """Return `[low, high]`, each end in that form."""
    return f"[{form(ci95[0])}, {form(ci95[1])}]" if ci95 else UNKNOWN


def measured(value: float, ci95: Sequence[float] | None, unit: str = "") -> str:
    """Return a number and its unit with its interval, as `RoundedEstimate` rounds them."""
    shown = RoundedEstimate(value, ci95)
    return f"{shown.text}{unit} {shown.interval}".strip()


def percent(share: float | None, *, decimals: int = 1, signed: bool = False) -> str:
    """Return a share 0..1 as `71.0 %`; the text around it names the base."""
    if share is None or not math.isfinite(share):
        return UNKNOWN
    return f"{_signed(100 * share, f'.{decimals}f', signed=signed)} %"


def loss(relative: float | None) -> str:
    """Return a relative perplexity: `+12.3 %`, or as a factor, `4.3e9×`, beyond percent."""
    large = None if relative is None else factor(relative)
    return large or percent(relative, signed=True)


def share_of(part: float | None, whole: float | None) -> float | None:
    """Return part / whole for display, or None where either is unknown or the whole is 0."""
    return None if part is None or not whole else part / whole


def count(value: float | None) -> str:
    """Return calls a step: `224`, or `223.6` where steps differ."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if abs(value - round(value)) < 5e-3 else f"{value:,.1f}"


def whole(value: float) -> str:
    """Return an integer with thousands separated, such as the ns of a closure line."""
    return f"{round(value):,}".replace("-", MINUS)


_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def size(num_bytes: float | None) -> str:
    """Return bytes in decimal units (1 GB = 10⁹ bytes)."""
    if num_bytes is None:
        return UNKNOWN
    for per, unit in _SIZES:
        if abs(num_bytes) >= per:
            return f"{num_bytes / per:.2f} {unit}"
    return f"{num_bytes:.0f} bytes"


def size_scale(values: Iterable[float]) -> tuple[str, float]:
    """Return one unit for a whole column of bytes, that of the largest, and its bytes."""
    top = max(values, default=0.0)
    per, unit = next((step for step in _SIZES if top >= step[0]), (1.0, "bytes"))
    return unit, per


def rate(value: float | None) -> str:
    """Return tokens a second, or another rate, with three digits and more."""
    if value is None or not math.isfinite(value):
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def peak_rate(rate: float, unit: str) -> str:
    """Return a peak: `989.4 TFLOP/s`, or of unit "B" `3,350 GB/s`."""
    if unit == "B":
        return f"{rate / 1e9:,.4g} GB/s" if rate < 1e13 else f"{rate / 1e12:,.4g} TB/s"
    per, prefix = (1e12, "T") if rate >= 1e12 else (1e9, "G")
    return f"{rate / per:,.4g} {prefix}{unit}/s"


def _signed(value: float, form: str, *, signed: bool) -> str:
    text = f"{value:,{form}}"
    if not float(text.replace(",", "")):
        return text.lstrip("-")  # no "-0.00"
    text = text.replace("-", MINUS)
    return f"+{text}" if signed and value > 0 else text
