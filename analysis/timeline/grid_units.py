"""The unit of a device event's grid: blocks, or work-items, as some records of ROCm have it.

In: a trace and rows of its device events. Out: one of BLOCKS, ITEMS, UNKNOWN_UNIT for each. CUDA
records blocks. Of ROCm's launches, hipExtModuleLaunchKernel takes work-items and the other ones
take blocks; roctracer records what the call was given, rocprofiler-sdk the work-items of the
dispatch.
"""

from __future__ import annotations

import numpy as np

from prunescope.analysis.timeline.correlate import launch_of, taken
from prunescope.analysis.trace.collector import Ints, unique_ids
from prunescope.analysis.trace.trace_columns import Trace
from prunescope.taxonomy.lazy_pattern import lazy_pattern

BLOCKS, ITEMS, UNKNOWN_UNIT = 0, 1, 2
_TAKES_ITEMS = lazy_pattern(r"hip(?:Ext|Hcc)ModuleLaunchKernel")
_TAKES_BLOCKS = lazy_pattern(r"hip(?:Module|Ext|ExtLaunchMulti)?LaunchKernel|hipLaunchCooperative")
_TENSILE = lazy_pattern(r"^(?:Cijk_|Custom_Cijk_)")  # always launched with work-items
# If blocks divide so many different grids, this is no chance: the grids count work-items.
_ENOUGH = 8


def is_rocm(trace: Trace) -> bool:
    """Return whether a trace is of ROCm, by its runtime calls or else by the name of its device."""
    names = unique_ids(trace.launches["name"])
    if any(trace.names[i].startswith("hip") for i in names):
        return True
    device = (trace.device_name or "").lower()
    return not len(names) and ("amd" in device or "instinct" in device or "radeon" in device)


def grid_units(trace: Trace, events: Ints) -> Ints:
    """Return BLOCKS, ITEMS or UNKNOWN_UNIT for each device event; BLOCKS for a row of -1."""
    units = np.full(len(events), BLOCKS)
    if not is_rocm(trace):
        return units
    api = taken(trace.launches["name"], launch_of(trace, events))
    items = np.array([_TAKES_ITEMS.match(name) is not None for name in trace.names], bool)
    blocks = np.array([_TAKES_BLOCKS.match(name) is not None for name in trace.names], bool)
    tensile = np.array([_TENSILE.match(name) is not None for name in trace.names], bool)
    name = taken(trace.device["name"], events)
    by_items = (api >= 0) & items[np.maximum(api, 0)] | (name >= 0) & tensile[np.maximum(name, 0)]
    by_blocks = (api >= 0) & blocks[np.maximum(api, 0)] & ~by_items
    units[events >= 0] = UNKNOWN_UNIT
    recorded = _recorded_unit(trace, events[by_blocks])
    if recorded == ITEMS:  # of the dispatch, for any call
        units[events >= 0] = ITEMS
    units[by_blocks] = recorded
    units[by_items] = ITEMS
    return units


def _recorded_unit(trace: Trace, events: Ints) -> int:
    """Return the unit that the profiler recorded for launches that take blocks.

    A grid that its block does not divide is no count of work-items.

    Limitations: If the blocks divide at least 8 distinct grids, these are taken for work-items;
    with fewer grids the unit is unknown.
    """
    grid, block = taken(trace.device["grid"], events), taken(trace.device["block"], events)
    known = (grid >= 0) & (block >= 0)
    pairs = set(zip(grid[known].tolist(), block[known].tolist(), strict=True))
    sizes = [(trace.grids[g], trace.grids[b]) for g, b in pairs]
    wide = [(g, b) for g, b in sizes if max(b) > 1]
    if any(not _divides(b, g) for g, b in wide):
        return BLOCKS
    return ITEMS if len(wide) >= _ENOUGH else UNKNOWN_UNIT


def _divides(block: tuple[int, ...], grid: tuple[int, ...]) -> bool:
    """Return whether a block divides a grid along every axis."""
    return all(n % width == 0 for n, width in zip(grid, block, strict=False) if width > 0)
