"""Random placements of the weights in memory: their addresses are sampled, and not a constant.

A model and its own copy differ by up to 3 % for as long as both stay at their addresses (caches,
pages, memory channels). Models come in; the same models go out, whose parameters and buffers have
new addresses but equal values, shapes, strides and flags. Tied weights stay tied.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from prunescope.taxonomy.timings import part
from prunescope.tracer.capture.request import TraceRequest
from prunescope.tracer.machine.backends import backend_of
from prunescope.tracer.machine.device import free_bytes
from prunescope.tracer.model.packed_weights import stored_tensors

# The alignment of torch's allocators: libraries choose kernels by it.
_CPU_ALIGNMENT, _DEVICE_ALIGNMENT = 64, 512
_MAX_OFFSET = 1 << 21  # a block's first tensor begins anywhere within a large page
# A weight that moves alone has a block of its own, in which the bytes before it stay allocated.
_MAX_OFFSET_ALONE = 1 << 16
_COPY_ROOM = 1.2  # a second copy of a model needs so many times its size in free memory


@dataclass(frozen=True, kw_only=True)
class PlacementPlan:
    """The measurements of one placement.

    They are `repeats` samples and, of a prefill, `steps` profiled steps, in each of the `phases`.
    """

    number: int
    repeats: int
    steps: int
    phases: tuple[str, ...] = ()


def planned_placements(request: TraceRequest) -> list[PlacementPlan]:
    """Return the placements of a request that are measured in any case, each with a sample.

    Outside of sweeps each has a profiled step too. With `until` each has as many samples as the
    largest has without it.
    """
    count, repeats = request.first_placements, request.repeats
    if request.until is not None:
        repeats = count * -(-repeats // min(request.placements, repeats))
    return plan_placements(
        count,
        repeats=repeats,
        steps=request.steps,
        step_in_each=request.profile_every_placement,
        phases=request.phases,
    )


def plan_placements(
    count: int,
    *,
    repeats: int,
    steps: int,
    step_in_each: bool = True,
    phases: tuple[str, ...] = (),
) -> list[PlacementPlan]:
    """Distribute samples and profiled steps over `count` placements, as evenly as possible.

    `step_in_each` gives every placement one profiled step at least.
    """
    samples = split_evenly(repeats, count)
    profiled = split_evenly(max(steps, count * step_in_each), count)
    return [
        PlacementPlan(number=i, repeats=samples[i], steps=profiled[i], phases=phases)
        for i in range(count)
    ]


def further_placement(request: TraceRequest, number: int, phases: tuple[str, ...]) -> PlacementPlan:
    """Plan one more placement of these phases, with as many samples and steps as the largest.

    In a sweep it has no profiled step, as the first placements have all of them.
    """
    plans = planned_placements(request)
    steps = max(plan.steps for plan in plans)
    return PlacementPlan(
        number=number,
        repeats=max(plan.repeats for plan in plans),
        steps=steps if request.profile_every_placement else 0,
        phases=phases,
    )


def split_evenly(total: int, parts: int) -> list[int]:
    """Split `total` into `parts` whole numbers that differ by one at most."""
    return [total * (i + 1) // parts - total * i // parts for i in range(parts)]


def placed(
    plans: Iterable[PlacementPlan],
    models: Sequence[torch.nn.Module],
    rng: random.Random,
    *,
    move: bool,
) -> Iterator[tuple[PlacementPlan, int]]:
    """Move the weights for each placement in turn; yield it with the ns that moving took.

    If `move` is False, the weights stay where the loader put them, and the cost is 0.
    """
    for plan in plans:
        start = time.perf_counter_ns()
        if move:
            move_weights(models, rng)
        yield plan, time.perf_counter_ns() - start if move else 0


@dataclass
class _Region:
    """The bytes [start, end) of one storage that tensors of a model use, and those tensors."""

    storage: torch.UntypedStorage
    start: int
    end: int
    tensors: list[torch.Tensor] = field(default_factory=list)


@part("load")
def move_weights(models: Iterable[torch.nn.Module], rng: random.Random) -> None:
    """Move the weights of every model to fresh memory, all by the same means, in random order.

    A model is copied into one new block, its tensors in random order behind a random offset, while
    its old memory is still allocated, so that no tensor gets its old address back. Where memory
    lacks room for a second copy, its storages move one by one.
    """
    models = list(models)
    rng.shuffle(models)
    for model in models:
        with _mode_of_weights(model):
            _move_model(model, rng)


def separate_storages(model: torch.nn.Module, rng: random.Random) -> None:
    """Give each weight of a moved model a storage of its own again, as a loader does.

    Saving or keeping a single weight would otherwise save or keep the whole block.
    """
    with _mode_of_weights(model):
        for region in _regions(model):
            device = region.storage.device
            _move([region], device, rng, max_offset=_alignment(device))


@contextmanager
def _mode_of_weights(model: torch.nn.Module) -> Iterator[None]:
    """Enter the inference mode that the weights were made in, whatever the mode around is.

    Tensors that autograd knows then stay so, and so do inference tensors.
    """
    inference = any(weight.is_inference() for weight in model.parameters())
    with torch.inference_mode(mode=inference), torch.no_grad():
        yield


def _move_model(model: torch.nn.Module, rng: random.Random) -> None:
    """Move the regions of a model, on each device in one block if memory has room."""
    regions = _regions(model)
    rng.shuffle(regions)
    for device in dict.fromkeys(region.storage.device for region in regions):
        on_device = [region for region in regions if region.storage.device == device]
        size = sum(region.end - region.start for region in on_device)
        backend_of(device).empty_cache()  # to the driver, freed blocks that torch keeps are in use
        if free_bytes(device) > _COPY_ROOM * size + _MAX_OFFSET:
            _move(on_device, device, rng, max_offset=_MAX_OFFSET)
        else:
            for region in on_device:
                _move([region], device, rng, max_offset=_MAX_OFFSET_ALONE)


def _move(
    regions: list[_Region], device: torch.device, rng: random.Random, *, max_offset: int
) -> None:
    """Copy regions into one new block, and make their tensors views of it.

    The first region begins at most `max_offset` bytes after the start of the block.
    """
    unit = _alignment(device)
    rooms = [-(-(region.end - region.start) // unit) * unit for region in regions]
    block = torch.empty(sum(rooms) + max_offset + unit, dtype=torch.uint8, device=device)
    at = -block.data_ptr() % unit + unit * rng.randrange(max_offset // unit)
    for region, room in zip(regions, rooms, strict=True):
        count = region.end - region.start
        block[at : at + count].copy_(
            _make_view(region.storage, torch.uint8, region.start, (count,))
        )
        for tensor in region.tensors:
            offset = (at - region.start) // tensor.element_size() + tensor.storage_offset()
            tensor.data = _make_view(
                block.untyped_storage(), tensor.dtype, offset, tensor.shape, tensor.stride()
            )
        at += room


def _make_view(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: Any,
    shape: Iterable[Any],
    stride: Iterable[Any] = (1,),
) -> torch.Tensor:
    """Return a tensor over a storage."""
    empty = torch.empty(0, dtype=dtype, device=storage.device)
    return empty.set_(storage, offset, tuple(shape), tuple(stride))


def _regions(model: torch.nn.Module) -> list[_Region]:
    """Return disjoint regions; tensors that share bytes, as tied weights do, move together."""
    spans: dict[int, list[tuple[int, int, torch.Tensor]]] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        for stored in filter(_can_move, stored_tensors(tensor)):
            size = stored.element_size()
            begin = int(stored.storage_offset()) * size
            used = spans.setdefault(stored.untyped_storage()._cdata, [])
            used.append((begin, begin + _span(stored) * size, stored))
    regions: list[_Region] = []
    for tensors in spans.values():
        last: _Region | None = None
        for begin, end, stored in sorted(tensors, key=lambda entry: entry[:2]):
            if last is None or begin >= last.end:
                storage = stored.untyped_storage()
                last = _Region(storage, begin - begin % _alignment(storage.device), end)
                regions.append(last)
            last.end = max(last.end, end)
            last.tensors.append(stored)
    return regions


def _span(tensor: torch.Tensor) -> int:
    """Return the number of elements from a tensor's first to its last in the storage."""
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((int(size) - 1) * int(step) for size, step in sides)


def _can_move(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is plain, strided, and made in the current inference mode.

    All others stay. (A buffer that a forward in inference mode wrote cannot be changed outside of
    that mode.)
    """
    same_mode = tensor.is_inference() == torch.is_inference_mode_enabled()
    plain = same_mode and type(tensor) in (torch.Tensor, torch.nn.Parameter)
    strided = plain and tensor.layout == torch.strided and not tensor.is_quantized
    return strided and tensor.device.type != "meta" and tensor.numel() > 0


def _alignment(device: torch.device) -> int:
    """Return the alignment of torch's allocator on a device, in bytes."""
    return _CPU_ALIGNMENT if device.type == "cpu" else _DEVICE_ALIGNMENT
