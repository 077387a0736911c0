"""Placements: weights are put into fresh memory, so that where they lie is drawn and not a
constant.

A model and its own copy differ by up to 3 % for as long as both stay where they are (caches, pages,
memory channels). In: models. Out: nothing; parameters and buffers lie elsewhere, with equal values,
shapes, strides and flags; tied ones stay tied.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from prunescope.taxonomy.run import NARROW, PhaseRun
from prunescope.taxonomy.student import student
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.machine.device import free_bytes
from prunescope.tracer.model.weights import stored_tensors

# As torch's allocators align: libraries choose kernels by it.
_CPU_UNIT, _DEVICE_UNIT = 64, 512
_SHIFT = 1 << 21  # a block's first tensor begins anywhere within a large page
# Where weights move one by one each has a block of its own, and what it is longer by stays in use.
_LITTLE_SHIFT = 1 << 16
_ROOM = 1.2  # free memory that a second copy of a model asks for, in copies


@dataclass
class _Region:
    """The bytes [start, end) of one storage that tensors of a model use, and those tensors."""

    storage: torch.UntypedStorage
    start: int
    end: int
    tensors: list[torch.Tensor] = field(default_factory=list)


def shares(total: int, parts: int) -> list[int]:
    """`total` in `parts` whole numbers that differ by one at most."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


@dataclass(frozen=True, kw_only=True)
class PlacementPart:
    """A placement's part of the samples, and of the profiled steps of a prefill; of these
    phases."""

    number: int
    repeats: int
    steps: int
    phases: tuple[str, ...]


def parts_of(request: TraceRequest) -> list[PlacementPart]:
    """One a placement, with a sample at least, and with a profiled step where those are seated."""
    count = request.first_placements
    repeats = shares(request.repeats, count)
    steps = shares(max(request.steps, count * request.seated_steps), count)
    return [
        PlacementPart(number=i, repeats=repeats[i], steps=steps[i], phases=request.phases)
        for i in range(count)
    ]


def further_part(request: TraceRequest, number: int, phases: tuple[str, ...]) -> PlacementPart:
    """One more, of these phases, with as many samples and steps as the largest that was asked."""
    parts = parts_of(request)
    return PlacementPart(
        number=number,
        repeats=max(part.repeats for part in parts),
        steps=max(part.steps for part in parts),
        phases=phases,
    )


def wide_phases(runs: Mapping[str, Sequence[PhaseRun]]) -> tuple[str, ...]:
    """Those of which the interval is wider than `NARROW`, of the two sides by phase. None where
    something else ran beside one: such times are not valid, however narrow their interval."""
    if any(run.has_disturbed_samples for sides in runs.values() for run in sides):
        return ()
    seated = {phase: [run.samples_by_placement for run in sides] for phase, sides in runs.items()}
    return tuple(phase for phase, sides in seated.items() if width(*sides) > NARROW)


def width(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> float:
    """Of the 95 % interval of the ratio of two models' times, as a share of the ratio. Samples, ns,
    by placement; infinite where there are too few of them.

    t interval of the mean over placements of the logarithm of the ratio of the placement's medians.
    """
    logs = [
        math.log(statistics.median(a) / statistics.median(b))
        for a, b in zip(one, other, strict=True)
    ]
    if len(logs) < 2:
        return math.inf
    half = student(len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return 2 * math.sinh(half)


def place(models: Iterable[torch.nn.Module], draw: random.Random) -> None:
    """Put the weights of every model into fresh memory, all by the same means, in random order.

    A model is copied into one new block, its tensors in random order behind a random shift, while
    its old memory is still held: nothing gets its old address back. Where there is no room for a
    model twice, its storages move one by one, each held twice at a time.
    """
    models = list(models)
    draw.shuffle(models)
    for model in models:
        with _mode_of(model):
            _place(model, draw)


def settle(model: torch.nn.Module, draw: random.Random) -> None:
    """Give each weight of a placed model a storage of its own again, as a loader does: a block of
    all of them is written whole with each one that is saved, and held by each one that is kept."""
    with _mode_of(model):
        for region in _regions(model):
            device = region.storage.device
            _move([region], device, draw, shift=_unit(device))


@contextmanager
def _mode_of(model: torch.nn.Module) -> Iterator[None]:
    """Whatever a user's loop is inside of, weights stay what they are: tensors that autograd knows,
    or those that were made in inference mode."""
    inference = any(weight.is_inference() for weight in model.parameters())
    with torch.inference_mode(mode=inference), torch.no_grad():
        yield


def _place(model: torch.nn.Module, draw: random.Random) -> None:
    regions = _regions(model)
    draw.shuffle(regions)
    for device in dict.fromkeys(region.storage.device for region in regions):
        there = [region for region in regions if region.storage.device == device]
        size = sum(region.end - region.start for region in there)
        if device.type == "cuda":  # what torch keeps of freed blocks is in use to the driver
            torch.cuda.empty_cache()
        if free_bytes(device) > _ROOM * size + _SHIFT:
            _move(there, device, draw, shift=_SHIFT)
        else:
            for region in there:
                _move([region], device, draw, shift=_LITTLE_SHIFT)


def _move(regions: list[_Region], device: torch.device, draw: random.Random, *, shift: int) -> None:
    """Copy regions into one new block, `shift` bytes from its start at most, and let their tensors
    be views of it."""
    unit = _unit(device)
    rooms = [-(-(region.end - region.start) // unit) * unit for region in regions]
    block = torch.empty(sum(rooms) + shift + unit, dtype=torch.uint8, device=device)
    at = -block.data_ptr() % unit + unit * draw.randrange(shift // unit)
    for region, room in zip(regions, rooms, strict=True):
        count = region.end - region.start
        block[at : at + count].copy_(_view(region.storage, torch.uint8, region.start, (count,)))
        for tensor in region.tensors:
            offset = (at - region.start) // tensor.element_size() + tensor.storage_offset()
            tensor.data = _view(
                block.untyped_storage(), tensor.dtype, offset, tensor.shape, tensor.stride()
            )
        at += room


def _view(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: Any,
    shape: Iterable[Any],
    stride: Iterable[Any] = (1,),
) -> torch.Tensor:
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset, tuple(shape), tuple(stride))


def _regions(model: torch.nn.Module) -> list[_Region]:
    """Disjoint ones: tensors that share bytes, as tied weights do, move together."""
    found: dict[int, list[tuple[int, int, torch.Tensor]]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for stored in filter(_moves, stored_tensors(tensor)):
            size = stored.element_size()
            begin = int(stored.storage_offset()) * size
            own = found.setdefault(stored.untyped_storage()._cdata, [])
            own.append((begin, begin + _span(stored) * size, stored))
    regions: list[_Region] = []
    for tensors in found.values():
        last: _Region | None = None
        for begin, end, stored in sorted(tensors, key=lambda one: one[:2]):
            if last is None or begin >= last.end:
                storage = stored.untyped_storage()
                last = _Region(storage, begin - begin % _unit(storage.device), end)
                regions.append(last)
            last.end = max(last.end, end)
            last.tensors.append(stored)
    return regions


def _span(tensor: torch.Tensor) -> int:
    """Elements of its storage from its first to its last, both counted."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((int(size) - 1) * int(step) for size, step in sides)


def _moves(tensor: torch.Tensor) -> bool:
    """Whether it is a plain tensor with bytes, made in the mode that holds: others keep their
    place (a rotation that a forward in inference mode wrote anew cannot move outside of it)."""
    alike = tensor.is_inference() == torch.is_inference_mode_enabled()
    plain = alike and type(tensor) in (torch.Tensor, torch.nn.Parameter)
    strided = plain and tensor.layout == torch.strided and not tensor.is_quantized
    return strided and tensor.device.type != "meta" and tensor.numel() > 0


def _unit(device: torch.device) -> int:
    return _CPU_UNIT if device.type == "cpu" else _DEVICE_UNIT
