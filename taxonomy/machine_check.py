"""One check of `doctor` on a machine, which tracer/ makes and analysis/report/ shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(kw_only=True)
class MachineCheck:
    """One check of a machine; `needed`: without it `trace` or `analyze` does not work."""

    check: str  # its name
    ok: bool | None  # None: cannot be known
    needed: bool = False
    says: str
    hint: str | None = None  # the fix
