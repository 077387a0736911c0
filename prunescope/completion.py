"""What a shell completes as values of options: in, what was typed so far; out, words.

Imported with the command line itself, so each list is read only when a shell asks for it.
"""

from __future__ import annotations

from collections.abc import Iterable


def _listed(typed: str, words: Iterable[str], separators: str = ",") -> list[str]:
    """The words that go on with the last part of a list such as `md,p`, with what is before it."""
    at = max((typed.rfind(separator) for separator in separators), default=-1) + 1
    before, last = typed[:at], typed[at:]
    return [f"{before}{word}" for word in words if word.startswith(last)]


def models(incomplete: str) -> list[str]:
    """Presets."""
    from prunescope.taxonomy.presets import preset_names

    return _listed(incomplete, preset_names(), "")


def families(incomplete: str) -> list[str]:
    """Families, several joined by +, each with its sparsity."""
    from prunescope.taxonomy.families import families as known

    return _listed(incomplete, (family.id for family in known()), "+")


def methods(incomplete: str) -> list[str]:
    """Families and published methods, several with commas."""
    from prunescope.taxonomy.families import families as known
    from prunescope.taxonomy.methods import method_names

    return _listed(incomplete, [*(family.id for family in known()), *method_names()], ",+")


def devices(incomplete: str) -> list[str]:
    """Devices of the table."""
    from prunescope.analysis.device.hardware import DEVICES

    return _listed(incomplete, (device.name for device in DEVICES), "")


def machines(incomplete: str) -> list[str]:
    """Devices of this machine as torch calls them."""
    return _listed(incomplete, ("auto", "cpu", "cuda", "mps"), "")


def dtypes(incomplete: str) -> list[str]:
    """Number formats that a model runs in."""
    return _listed(incomplete, ("auto", "bfloat16", "float16", "float32"), "")


def formats(incomplete: str) -> list[str]:
    """Formats of a report, several with commas."""
    from prunescope.analysis.report.formats import FORMATS

    return _listed(incomplete, FORMATS)
