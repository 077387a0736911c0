"""The entries of a report on a side and its device: in, a Side; out, plain values without paths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from prunescope.analysis.inputs.side import Diagnostics, Side
from prunescope.analysis.kernels.work_split import crosses_link
from prunescope.analysis.schema.report import Phase
from prunescope.analysis.schema.sides import DeviceUsed, SideFacts
from prunescope.taxonomy.family import read_selection
from prunescope.taxonomy.runs.run_blocks import Pruning


def facts_of(side: Side, diagnostics: Diagnostics) -> SideFacts:
    """Return the `subject` or `baseline` object of a report, without ranks that are left out."""
    if side.run is None:
        name = side.path.name or side.path.resolve().name
        bare = SideFacts(name=name, model=None, method=None, variant=None)
        if side.ranks:
            bare["ranks"] = [rank for rank in side.ranks if rank not in diagnostics.left_out]
        return bare
    run, pruning = side.run, side.run.pruning or Pruning()
    facts = SideFacts(
        name=f"{side.path.parent.name}/{side.path.name}",
        variant=run.variant,
        model=run.model.id,
        architecture=run.model.architecture,
        method=pruning.method,
        sparsity=pruning.sparsity,
        selection=pruning.selection and read_selection(pruning.selection),
        dtype=run.dtype,
        versions=run.versions,
        argv=run.argv,
        seeds=run.seeds,
        parameters=run.parameters,
        weight_bytes=run.weight_bytes,
    )
    if pruning.display_name is not None:
        facts["display_name"] = pruning.display_name
    return facts


def device_of(side: Side, phases: Iterable[Phase]) -> DeviceUsed:
    """Return the `device` object of a report.

    It has the link to the host where copies of a phase are judged by it.
    """
    name = side.bare.device_name if side.bare is not None and side.bare.on_device else None
    if side.peaks is not None and (side.peaks.flop_per_s or side.peaks.byte_per_s):
        used, device = side.peaks.as_json(), side.peaks.device
        judged = (row for phase in phases for row in phase.kernels if row.efficiency is not None)
        is_crossed = any(row.kind == "memcpy" and crosses_link(row.name) for row in judged)
        peaks = used["peaks"]
        if is_crossed and peaks and device and device.link and device.link_byte_per_s:
            peaks |= {"link": device.link, "link_byte_per_s": device.link_byte_per_s}
        return {**used, "named": name} if name and name != used["name"] else used
    return DeviceUsed(name=name, peaks=None, source=None, measured=False, sheet=None)


def unique_suffixes(paths: Sequence[Path]) -> list[str]:
    """Return the shortest distinct ends of the paths; equal paths are numbered."""
    parts = [[part for part in path.parts if part != path.anchor] for path in paths]
    longest = max((len(p) for p in parts), default=1)
    for count in range(1, longest + 1):
        names = ["/".join(p[-count:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    if len({tuple(p) for p in parts}) == 1:
        return [p[-1] for p in parts]
    return [f"{p[-1]} ({i})" for i, p in enumerate(parts, 1)]
