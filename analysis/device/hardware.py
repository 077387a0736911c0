"""The device table: peaks, bandwidth, limits, and the source of each number.

A device name, from the user or a trace, gives a Device. Its units are FLOP/s (dense, no sparsity),
byte/s, Hz and bytes. An unknown name is an error or None, never a similar device.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib import resources
from typing import Any, Protocol

from msgspec import Struct, field
from msgspec.structs import replace

from prunescope.taxonomy.dtypes import THREE_TF32, dtype, three_tf32_rate
from prunescope.taxonomy.errors import PrunescopeError
from prunescope.taxonomy.lazy_pattern import lazy_pattern

_FORMAT = 1


class MeasuredTimes(Protocol):
    """The measured times of a device by the size of an op, in ns."""

    @property
    def call_ns(self) -> float:
        """The time of a small op that is called in a loop."""

    @property
    def op_ns(self) -> float:
        """The time of an op in the modules of a model that computes little."""

    @property
    def forward_ns(self) -> float:
        """The time of a forward beyond its layers."""

    @property
    def threads(self) -> int | None:
        """The threads of the measurement."""

    def gemm_ns(self, dtype: str, *, m: float, n: float, k: float) -> float | None:
        """Return the time of a GEMM beyond its call; None for a dtype that was not measured."""

    def cold_weight_ns(self, dtype: str) -> float:
        """Return the time for each number of a weight that a GEMM reads from memory."""

    def stream_ns(self, size: float) -> float:
        """Return the time beyond its call of an element-wise op that moves `size` bytes in all."""


class Device(Struct, frozen=True, kw_only=True):
    """A device with its peaks and limits; None is unknown.

    `verified`: its sources agree, and a second witness (clock x FLOP per clock, bus x pin rate)
    gives the same within 5 %. `unverified` names single fields without that. `sm` counts streaming
    multiprocessors or compute units.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: str
    architecture: str | None = None  # a key of "architectures" in devices.json
    dense_flop_per_s: Mapping[str, float]
    byte_per_s: float | None
    link: str | None = None  # to the host, e.g. pcie-4.0 (16 lanes) or nvlink-c2c
    link_byte_per_s: float | None = None  # in one direction
    sm: int | None = None
    memory_bytes: int | None = None  # of the board, less what its error correction takes
    l2_bytes: int | None = None
    llc_bytes: int | None = None  # a cache behind L2
    source: str
    verified: bool = False
    unverified: tuple[str, ...] = ()
    note: str | None = None
    achievable_flop_per_s: Mapping[str, float] = field(default_factory=dict)  # best published GEMM
    boost_hz: float | None = None  # the clock behind the tensor-core peaks
    boost_hz_fp32: float | None = None  # the clock behind the fp32 peak, where it differs
    flop_per_clk_sm: Mapping[str, float] = field(default_factory=dict)
    bus_bits: int | None = None
    bit_per_s_pin: float | None = None
    max_threads_per_sm: int | None = None
    registers_per_sm: int | None = None  # 32-bit
    shared_bytes_per_sm: int | None = None
    max_blocks_per_sm: int | None = None
    warp: int | None = None
    sparse_24: bool | None = None  # has matrix units (tensor cores) for 2:4 sparsity
    tf32: bool | None = None  # has matrix units for TF32
    times: MeasuredTimes | None = None  # by the size of an op, where `calibrate` measured them

    @property
    def is_cpu(self) -> bool:
        """Whether the host itself does the work, so that nothing is launched on another device."""
        return self.architecture == "cpu"

    def peak(self, name: str | None) -> float | None:
        """Return the dense FLOP/s of one of our dtype names, or None."""
        rates = self.dense_flop_per_s
        return None if name is None else rates.get(name) or rates.get(_FOUR_BITS.get(name, ""))

    def witness_flop_per_s(self, name: str) -> float | None:
        """Recompute a peak as SMs x clock x FLOP per clock and SM; None without the figures."""
        per_clk = self.flop_per_clk_sm.get(name)
        hz = (self.boost_hz_fp32 if name == "fp32" else None) or self.boost_hz
        if per_clk is None or hz is None or self.sm is None:
            return None
        return self.sm * hz * per_clk

    def witness_byte_per_s(self) -> float | None:
        """Recompute the bandwidth as bus width x rate of a pin; None without the figures."""
        if self.bus_bits is None or self.bit_per_s_pin is None:
            return None
        return self.bus_bits * self.bit_per_s_pin / 8


def _table() -> dict[str, Any]:
    """Read devices.json, which holds every number."""
    file = resources.files("prunescope.analysis.device") / "devices.json"
    table: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert table["format"] == _FORMAT
    return table


def _load(table: dict[str, Any]) -> tuple[Device, ...]:
    """Build the devices of a table, and register the links and limits that it states."""
    limits: dict[str, dict[str, Any]] = table["architectures"]
    _LIMITS.update(limits)
    _LINKS.update({name: link["gb_per_s"] * 1e9 for name, link in table["links"].items()})
    return tuple(_device(row, limits[row["architecture"]]) for row in table["devices"])


def _device(row: dict[str, Any], limits: dict[str, Any]) -> Device:
    """Build a device from its row and from the limits of its architecture, in base units."""

    def scaled(name: str, unit: float) -> float | None:
        """Return a number of the row in its base unit; None without it."""
        return None if name not in row else row[name] * unit

    def rates(name: str) -> dict[str, float]:
        """Return rates in TFLOP/s as FLOP/s, by dtype."""
        return {k: v * 1e12 for k, v in row.get(name, {}).items()}

    def mebibytes(name: str) -> int | None:
        """Return a number of MiB as bytes; None without it."""
        return None if name not in row else int(row[name] * 2**20)

    return Device(
        name=row["name"],
        aliases=tuple(row["aliases"]),
        vendor=row["vendor"],
        architecture=row["architecture"],
        dense_flop_per_s=rates("dense_tflop_per_s"),
        byte_per_s=row["gb_per_s"] * 1e9,
        link=row.get("link"),
        link_byte_per_s=_LINKS.get(row.get("link")),
        sm=row["sm"],
        memory_bytes=_memory_bytes(row),
        l2_bytes=mebibytes("l2_mib"),
        llc_bytes=mebibytes("llc_mib"),
        source=row["source"],
        verified=row["verified"],
        unverified=tuple(row.get("unverified", ())),
        note=row.get("note"),
        achievable_flop_per_s=rates("achievable_tflop_per_s"),
        boost_hz=scaled("boost_ghz", 1e9),
        boost_hz_fp32=scaled("boost_ghz_fp32", 1e9),
        flop_per_clk_sm=row.get("flop_per_clk_sm", {}),
        bus_bits=row.get("bus_bits"),
        bit_per_s_pin=scaled("gbit_per_s_pin", 1e9),
        **limits,
    )


def _memory_bytes(row: dict[str, Any]) -> int | None:
    """Return the bytes of memory that a process can use; None where the amount is a buyer's choice.

    Chips hold powers of two: a GB of memory is sold as 2^30 bytes. GDDR6 that stores its error
    correction in memory loses a sixteenth while that is on: nvidia-smi prints 15,360 MiB for a T4,
    23,034 for an L4 and 46,068 for an L40S, but 81,559 for an H100 and 24,564 for a 4090.
    """
    if "memory_gb" not in row:
        return None
    return int(row["memory_gb"] * 2**30 * (15 / 16 if row.get("ecc_in_memory") else 1))


# Formats of 4 bits in blocks: where a data sheet has no own rate, it is that of the other name.
_FOUR_BITS = {"nvfp4": "fp4", "mxfp4": "fp4", "fp4": "mxfp4"}
_HALF = {"fp16": "bf16", "bf16": "fp16"}  # dtypes that every matrix unit runs alike
_SAME_MEMORY = 0.05  # a driver keeps some of what is sold
_LINKS: dict[str | None, float] = {}  # byte/s of a link in one direction
_LIMITS: dict[str, dict[str, Any]] = {}  # the limits of each architecture
# The architecture of each compute capability of CUDA (major, minor).
_CAPABILITIES = {
    (7, 0): "volta", (7, 5): "turing", (8, 0): "ampere-100", (8, 6): "ampere-10x", (8, 9): "ada",
    (9, 0): "hopper", (10, 0): "blackwell-100", (10, 3): "blackwell-100", (12, 0): "blackwell-12x",
    (12, 1): "blackwell-12x",
}  # fmt: skip
DEVICES: tuple[Device, ...] = _load(_table())


def find_device(name: str) -> Device:
    """Return the device of an id or alias, in any case.

    Args:
        name: An id or alias of the table, or a name as nvidia-smi prints it.

    Returns:
        The device.

    Raises:
        PrunescopeError: No device has this name. The hint names the nearest ids, of its
            architecture where the name tells that.
    """
    device = _BY_NAME.get(_key(name)) or _BY_WORDS.get(_words(name))
    if device is None:
        raise PrunescopeError(f"no device is called {name!r}", hint=_suggest_devices(name))
    return device


def _suggest_devices(name: str) -> str:
    """Return a hint with devices to give instead of an unknown one."""
    if _CPU.search(" ".join(_words(name))):
        known = _join_ids([device for device in DEVICES if device.is_cpu])
        return (
            f"of CPUs the table holds {known}; `prunescope calibrate` measures the one that it "
            "runs on for --device cpu, and --from-run scales a run measured on one"
        )
    options = "`prunescope devices` lists all, --peak and --bandwidth set others"
    series = _nearest_of_series(name)
    if series and not _names_with(_key(name)):
        return f"nearest of {series[0].architecture}: {_join_ids(series)}; {options}"
    return f"nearest: {', '.join(_nearest_ids(_key(name)))}; {options}"


def device_in_trace(properties_name: str | None, memory: Any = None) -> Device | None:
    """Return the device that a trace's deviceProperties name, or None where it is not in the table.

    `memory` are its bytes, which distinguish boards of one name and chip. A CPU is never returned:
    a run may use two threads of its cores.
    """
    named = _BY_NAME.get(_key(properties_name)) if properties_name else None
    if named is not None and named.is_cpu:
        return None
    if named is None or type(memory) is not int or _has_memory(named, memory):
        return named
    chip = (named.sm, named.dense_flop_per_s, named.link, named.vendor)
    boards = [d for d in DEVICES if (d.sm, d.dense_flop_per_s, d.link, d.vendor) == chip]
    form = named.name.rpartition("-")[2]
    fitting = (d for d in boards if _has_memory(d, memory) and d.name.endswith(form))
    return next(fitting, named)


def _has_memory(device: Device, memory: int) -> bool:
    """Return whether a process may see this many bytes of a board's memory.

    It sees less than the board has, or a little more where error correction is off.
    """
    return device.memory_bytes is not None and 0.85 < memory / device.memory_bytes < 1.1


def device_of_capability(properties: Mapping[str, Any]) -> Device | None:
    """Return a device that is not in the table, by the compute capability of a trace.

    It has the limits of its architecture and the SMs that deviceProperties state, and no peak.
    Returns None where the capability is unknown. A warp of 64 threads is AMD's, whose versions are
    no compute capabilities.
    """
    version = properties.get("computeMajor"), properties.get("computeMinor")
    architecture = _CAPABILITIES.get(version)  # type: ignore[arg-type]
    if architecture is None or properties.get("warpSize") != _LIMITS[architecture]["warp"]:
        return None
    sm, name = properties.get("numSms"), properties.get("name")
    return Device(
        name=name if isinstance(name, str) and name else "unnamed",
        vendor="nvidia",
        architecture=architecture,
        dense_flop_per_s={},
        byte_per_s=None,
        sm=sm if isinstance(sm, int) and 0 < sm < 1 << 16 else None,
        source="the compute capability in the trace",
        **_LIMITS[architecture],
    )


def with_overrides(
    device: Device | None,
    *,
    peaks: Mapping[str, float] | None = None,
    bandwidth_gb_per_s: float | None = None,
) -> Device:
    """Return `device` with peaks and bandwidth replaced.

    Args:
        device: The device; None makes one called "custom" with these numbers alone.
        peaks: Peaks in TFLOP/s by dtype.
        bandwidth_gb_per_s: Bandwidth in GB/s.

    Returns:
        The device, whose replaced numbers count as unverified.

    Raises:
        PrunescopeError: A dtype is unknown, or a value is not positive.
    """
    given = {parse_dtype(name): value * 1e12 for name, value in (peaks or {}).items()}
    bandwidth = None if bandwidth_gb_per_s is None else bandwidth_gb_per_s * 1e9
    for value in (*given.values(), *([] if bandwidth is None else [bandwidth])):
        if not 0 < value < float("inf"):
            raise PrunescopeError(
                "a peak or bandwidth is not a positive number",
                hint="for example --peak bf16=989 (TFLOP/s) and --bandwidth 3350 (GB/s)",
            )
    if device is None:
        return Device(
            name="custom",
            vendor="unknown",
            dense_flop_per_s=given,
            byte_per_s=bandwidth,
            source="given on the command line",
        )
    if not given and bandwidth is None:
        return device
    changed = [*given, *(["byte_per_s"] if bandwidth else [])]
    return replace(
        device,
        dense_flop_per_s={**device.dense_flop_per_s, **given},
        byte_per_s=bandwidth or device.byte_per_s,
        source=f"{', '.join(changed)} given on the command line; else {device.source}",
        verified=False,
        unverified=(*device.unverified, *changed),
    )


def rate_of(rates: Mapping[str, float], name: str) -> float | None:
    """Return the FLOP/s of a dtype; fp16 and bf16 stand in for each other where one is missing."""
    if name == THREE_TF32:
        return three_tf32_rate(rates)
    return rates.get(name) or rates.get({**_HALF, **_FOUR_BITS}.get(name, ""))


def same_chip(device: Device, name: str) -> bool:
    """Return whether the device of this name is the same chip: as many SMs at the same clock.

    A100 and A800, H100 SXM and H200 differ in memory and links alone, so rates of one hold for the
    other.
    """
    return name == device.name or name in _devices_of_chip(device.sm, device.boost_hz)


def best_gemm_share(device: Device, dtype: str) -> float | None:
    """Return the FLOP/s of the best published GEMM over the data sheet's; None without one.

    It is that of this device, else of its other half-precision format where both have one peak,
    else of a device with the same chip.
    """
    sheet = device.peak(dtype)
    if not sheet:
        return None
    formats = sorted(("bf16", "fp16"), key=lambda f: f != dtype) if dtype in _HALF else [dtype]
    names = _devices_of_chip(device.sm, device.boost_hz)
    for known in (device, *(board for board in DEVICES if board.name in names)):
        for name in formats:
            reached, peak = known.achievable_flop_per_s.get(name), known.peak(name)
            if reached and peak and abs(peak / sheet - 1) < 0.02:
                return reached / peak
    return None


@lru_cache
def _devices_of_chip(sm: int | None, boost_hz: float | None) -> tuple[str, ...]:
    """Return the names of the devices with as many SMs at this clock."""
    if sm is None or boost_hz is None:
        return ()
    return tuple(d.name for d in DEVICES if d.sm == sm and d.boost_hz == boost_hz)


def devices_of_size(sm: int | None, memory_bytes: int | None) -> list[str]:
    """Return the devices with so many SMs and, within 5 %, so much memory; none without both."""
    if not sm or not memory_bytes:
        return []
    return [
        device.name
        for device in DEVICES
        if device.sm == sm
        and device.memory_bytes is not None
        and abs(device.memory_bytes / memory_bytes - 1) < _SAME_MEMORY
    ]


def unknown_device(
    name: str, *, dense_flop_per_s: Mapping[str, float], byte_per_s: float, source: str
) -> Device:
    """Build a device that is not in the table, with its measured or given peaks alone."""
    return Device(
        name=name,
        vendor="unknown",
        dense_flop_per_s=dense_flop_per_s,
        byte_per_s=byte_per_s,
        source=source,
        sparse_24=False,  # an unknown device counts as one without
    )


def devices_json() -> dict[str, list[dict[str, Any]]]:
    """Return the table as `devices --json` prints it."""
    return {"devices": [device_json(device) for device in DEVICES]}


def device_json(device: Device) -> dict[str, Any]:
    """Return one device as plain values."""
    return {
        "name": device.name,
        "aliases": list(device.aliases),
        "vendor": device.vendor,
        "dense_flop_per_s": dict(device.dense_flop_per_s),
        "byte_per_s": device.byte_per_s,
        "link": device.link,
        "link_byte_per_s": device.link_byte_per_s,
        "sm": device.sm,
        "memory_bytes": device.memory_bytes,
        "l2_bytes": device.l2_bytes,
        "sparse_24": device.sparse_24,
        "llc_bytes": device.llc_bytes,
        "source": device.source,
        "verified": device.verified,
        "unverified": list(device.unverified),
        "note": device.note,
    }


def _key(name: str) -> str:
    """Return a name in lower case with single spaces."""
    return " ".join(name.split()).lower()


# Words that nvidia-smi and rocm-smi add to a name.
_ADDED_WORDS = frozenset({
    "nvidia", "amd", "apple", "instinct", "geforce", "tesla", "corporation", "inc", "graphics",
    "oam", "vf",
})  # fmt: skip


def _words(name: str) -> tuple[str, ...]:
    """Return the words of a name that distinguish devices, in order."""
    plain = re.sub(r"\((r|tm|c)\)|[^a-z0-9]+", " ", name.lower())
    return tuple(word for word in plain.split() if word not in _ADDED_WORDS)


# Words in the names of CPUs.
_CPU = lazy_pattern(
    r"\b(cpu|xeon|epyc|ryzen|threadripper|graviton\d?|neoverse|altra|grace|core i\d|core ultra|"
    r"pentium)\b"
)
# The series of names of each architecture, of which the first that fits counts. Numbers of
# professional boards return in several generations, and then the names say which.
_SERIES = tuple(
    (lazy_pattern(rf"\b({names})\b"), architecture)
    for names, architecture in (
        (r"ada", "ada"),
        (r"(rtx )?pro \d{3,4}|blackwell|rtx 50[5-9]\d|gb10|spark", "blackwell-12x"),
        (r"rtx 40\d\d|l[24]|l[24]0[sg]?", "ada"),
        (r"v100\w*|gv100|titan v", "volta"),
        (r"t4g?|rtx 20\d\d|gtx 16\d\d|titan rtx|quadro rtx|quadro t\d+|rtx [3-8]000", "turing"),
        (r"a[18]00\w*|a30x?", "ampere-100"),
        (r"rtx 30\d\d|a\d{1,2}[gm]?|a\d{3,4}|orin", "ampere-10x"),
        (r"g?h\d{2,3}\w*", "hopper"),
        (r"g?b[1-3]\d\d\w*", "blackwell-100"),
        (r"mi2\d\d\w*", "cdna2"),
        (r"mi3[0-4]\d\w*", "cdna3"),
        (r"mi3[5-9]\d\w*", "cdna4"),
        (r"m\d( pro| max| ultra)?", "apple"),
    )
)


def _nearest_of_series(name: str) -> list[Device]:
    """Return devices of the architecture that a name stands for.

    Those that share its words come first, then those with the nearest number. The list is empty
    where the name stands for no architecture of the table.

    Limitations: the series of a name is guessed by patterns.
    """
    words = " ".join(_words(name))
    plain = {word for word in _words(name) if word.isalpha()}
    architecture = next((known for names, known in _SERIES if names.search(words)), None)

    def distance(device: Device) -> tuple[int, int, float]:
        """Return a sort key that grows with the distance between the names."""
        alike = difflib.SequenceMatcher(None, words, " ".join(_words(device.name))).ratio()
        shared = plain.intersection(_words(device.name))
        return -len(shared), abs(_first_number(device.name) - _first_number(words)), -alike

    return sorted(
        (d for d in DEVICES if architecture and d.architecture == architecture), key=distance
    )


def _first_number(name: str) -> int:
    """Return the first number in a name, which orders the devices of a series; 0 without one."""
    digits = re.search(r"\d{1,9}", name)
    return int(digits.group()) if digits else 0


def _join_ids(devices: list[Device]) -> str:
    """Return the ids of the first four devices as a text."""
    return ", ".join(device.name for device in devices[:4])


def _names_with(key: str) -> list[str]:
    """Return ids and aliases that contain `key`, those that begin with it first."""
    names = [name for name in _BY_NAME if key and key in name]
    return sorted(names, key=lambda name: name.index(key))


def _nearest_ids(key: str) -> list[str]:
    """Return ids of the devices whose id or alias contains `key`, then the most similar ones."""
    close = [*_names_with(key), *difflib.get_close_matches(key, _BY_NAME, n=8, cutoff=0.5)]
    ids = list(dict.fromkeys(_BY_NAME[name].name for name in close))
    return ids[:4] or [device.name for device in DEVICES][:4]


def parse_dtype(name: str) -> str:
    """Return our name of a number format; raise PrunescopeError for an unknown one."""
    ours = dtype(name)
    if ours is None:
        raise PrunescopeError(
            f"no number format is called {name!r}", hint="for example bf16, fp16, tf32, fp32 or fp8"
        )
    return ours


def _index() -> dict[str, Device]:
    """Return the devices by id and alias."""
    by_name: dict[str, Device] = {}
    for device in DEVICES:
        for name in (device.name, *device.aliases):
            known = by_name.setdefault(_key(name), device)
            assert known is device, f"{name} names two devices"
    return by_name


def _index_of_words() -> dict[tuple[str, ...], Device]:
    """Return the devices by the words of their names, where these are unique.

    Those of the MI250X and of one half of it are not.
    """
    by_words: dict[tuple[str, ...], list[Device]] = {}
    for name, device in _BY_NAME.items():
        by_words.setdefault(_words(name), []).append(device)
    return {words: ds[0] for words, ds in by_words.items() if len({d.name for d in ds}) == 1}


_BY_NAME = _index()
_BY_WORDS = _index_of_words()
