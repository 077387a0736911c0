"""The device table: peaks, bandwidth, limits, and the source of each number.

In: a device name, from the user or a trace. Out: a Device. FLOP/s (dense, no sparsity), byte/s, Hz,
bytes. An unknown name is an error or None, never a similar device.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib import resources
from typing import Any

from prunescope.taxonomy.dtypes import THREE_TF32, dtype, three_tf32_rate
from prunescope.taxonomy.errors import PrunescopeError

_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. None is unknown.

    `verified`: its sources agree and a second witness (clock x FLOP per clock, bus x pin rate)
    gives the same within 5 %; `unverified` names single fields without that. `sm` counts
    streaming multiprocessors or compute units.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: str
    architecture: str | None = None  # as in devices.json
    dense_flop_per_s: Mapping[str, float]
    byte_per_s: float | None
    link: str | None = None  # to the host: pcie-4.0 (16 lanes), nvlink-c2c
    link_byte_per_s: float | None = None  # in one direction
    sm: int | None = None
    memory_bytes: int | None = None  # of the board, less what stores its error correction
    l2_bytes: int | None = None
    llc_bytes: int | None = None  # a cache behind L2
    source: str
    verified: bool = False
    unverified: tuple[str, ...] = ()
    note: str | None = None
    achievable_flop_per_s: Mapping[str, float] = field(default_factory=dict)  # best GEMM published
    boost_hz: float | None = None  # behind the tensor-core peaks
    boost_hz_fp32: float | None = None  # behind the fp32 peak, where it differs
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

    @property
    def is_cpu(self) -> bool:
        """Whether the host itself does the work, so that nothing is launched on another device."""
        return self.architecture == "cpu"

    def peak(self, name: str | None) -> float | None:
        """Dense FLOP/s of one of our dtype names, or None."""
        return None if name is None else self.dense_flop_per_s.get(name)

    def witness_flop_per_s(self, name: str) -> float | None:
        """The peak recomputed: SMs x clock x FLOP per clock and SM; None without the figures."""
        per_clk = self.flop_per_clk_sm.get(name)
        hz = (self.boost_hz_fp32 if name == "fp32" else None) or self.boost_hz
        if per_clk is None or hz is None or self.sm is None:
            return None
        return self.sm * hz * per_clk

    def witness_byte_per_s(self) -> float | None:
        """The bandwidth recomputed: bus width x rate of a pin; None without the figures."""
        if self.bus_bits is None or self.bit_per_s_pin is None:
            return None
        return self.bus_bits * self.bit_per_s_pin / 8


def _table() -> dict[str, Any]:
    """devices.json, which holds every number."""
    text = (
        resources.files("prunescope.analysis.device")
        .joinpath("devices.json")
        .read_text(encoding="utf-8")
    )
    table: dict[str, Any] = json.loads(text)
    assert table["format"] == _FORMAT
    return table


def _load(table: dict[str, Any]) -> tuple[Device, ...]:
    limits: dict[str, dict[str, Any]] = table["architectures"]
    _LIMITS.update(limits)
    _LINKS.update({name: one["gb_per_s"] * 1e9 for name, one in table["links"].items()})
    return tuple(_device(row, limits[row["architecture"]]) for row in table["devices"])


def _device(row: dict[str, Any], limits: dict[str, Any]) -> Device:
    def scaled(name: str, unit: float) -> float | None:
        return None if name not in row else row[name] * unit

    def rates(name: str) -> dict[str, float]:
        return {k: v * 1e12 for k, v in row.get(name, {}).items()}

    def mebibytes(name: str) -> int | None:
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
    """None where it is what somebody fitted. Chips hold powers of two: a GB of memory is sold as
    2^30 bytes. GDDR6 that stores its error correction in memory, when on, loses a sixteenth:
    nvidia-smi prints 15,360 MiB of a T4, 23,034 of an L4, 46,068 of an L40S, but 81,559 of an H100
    and 24,564 of a 4090."""
    if "memory_gb" not in row:
        return None
    return int(row["memory_gb"] * 2**30 * (15 / 16 if row.get("ecc_in_memory") else 1))


_SAME_RATE = {"fp16": "bf16", "bf16": "fp16"}  # dtypes that every matrix unit runs alike
_LINKS: dict[str | None, float] = {}  # byte/s of a link in one direction
_LIMITS: dict[str, dict[str, Any]] = {}  # of an architecture
# Compute capabilities of CUDA: major, and where it matters minor.
_CAPABILITIES = {
    (7, 0): "volta", (7, 5): "turing", (8, 0): "ampere-100", (8, 6): "ampere-10x", (8, 9): "ada",
    (9, 0): "hopper", (10, 0): "blackwell-100", (10, 3): "blackwell-100", (12, 0): "blackwell-12x",
    (12, 1): "blackwell-12x",
}  # fmt: skip
DEVICES: tuple[Device, ...] = _load(_table())


def find_device(name: str) -> Device:
    """The device of an id or alias, in any case. Raises PrunescopeError with the nearest ids, of
    its architecture where its name says which that is."""
    found = _BY_NAME.get(_key(name)) or _BY_WORDS.get(_words(name))
    if found is None:
        raise PrunescopeError(f"no device is called {name!r}", hint=_hint(name))
    return found


def _hint(name: str) -> str:
    """A hint with devices to give instead of an unknown one."""
    if _CPU.search(" ".join(_words(name))):
        known = _ids([device for device in DEVICES if device.is_cpu])
        return (
            f"of CPUs the table holds {known}; `prunescope calibrate` measures the rates of others "
            "for --peak and --bandwidth, and --from-run scales a run measured on one"
        )
    others = "`prunescope devices` lists all, --peak and --bandwidth set others"
    of_series = _nearest_of_series(name)
    if of_series and not _holding(_key(name)):
        return f"nearest of {of_series[0].architecture}: {_ids(of_series)}; {others}"
    return f"nearest: {', '.join(_nearest(_key(name)))}; {others}"


def device_in_trace(properties_name: str | None, memory: Any = None) -> Device | None:
    """The device that a trace's deviceProperties name, or None where it is not in the table.
    `memory`: its bytes, which distinguish boards of one name and chip. A CPU is none of them: a run
    may use two threads of its cores."""
    found = _BY_NAME.get(_key(properties_name)) if properties_name else None
    if found is not None and found.is_cpu:
        return None
    if found is None or type(memory) is not int or _holds(found, memory):
        return found
    chip = (found.sm, found.dense_flop_per_s, found.link, found.vendor)
    others = [d for d in DEVICES if (d.sm, d.dense_flop_per_s, d.link, d.vendor) == chip]
    form = found.name.rpartition("-")[2]
    fitting = [d for d in others if _holds(d, memory) and d.name.endswith(form)]
    return next(iter(fitting), found)


def _holds(device: Device, memory: int) -> bool:
    """Whether a process may see this many bytes of a board's memory: less than it has, or a little
    more where error correction is off."""
    return device.memory_bytes is not None and 0.85 < memory / device.memory_bytes < 1.1


def device_of_capability(properties: Mapping[str, Any]) -> Device | None:
    """A device that is not in the table, by the compute capability in a trace's deviceProperties:
    the limits of its architecture, its SMs, and no peak. None where the capability is unknown.

    A warp of 64 threads is AMD's, whose versions are no compute capabilities.
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
    """`device` with peaks in TFLOP/s by dtype and bandwidth in GB/s replaced.

    Without a device: one called "custom" with these alone. Raises PrunescopeError for an unknown
    dtype or a value that is not positive.
    """
    given = {_dtype(name): value * 1e12 for name, value in (peaks or {}).items()}
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
    """FLOP/s of a dtype; for fp16 and bf16 that of the other where its own is missing."""
    if name == THREE_TF32:
        return three_tf32_rate(rates)
    return rates.get(name) or rates.get(_SAME_RATE.get(name, ""))


def same_chip(device: Device, name: str) -> bool:
    """Whether the device of this name is the same chip: as many SMs at the same clock. A100 and
    A800, H100 SXM and H200 differ in memory and links alone, so rates of one hold for the other."""
    return name == device.name or name in _devices_of_chip(device.sm, device.boost_hz)


def best_gemm_share(device: Device, dtype: str) -> float | None:
    """FLOP/s of the best published GEMM over the data sheet's: of this device, else of its other
    half-precision format where both have one peak, else of a device with the same chip."""
    sheet = device.peak(dtype)
    if not sheet:
        return None
    formats = sorted(("bf16", "fp16"), key=lambda f: f != dtype) if dtype in _SAME_RATE else [dtype]
    same = [
        known for known in DEVICES if known.name in _devices_of_chip(device.sm, device.boost_hz)
    ]
    for known in (device, *same):
        for name in formats:
            reached, peak = known.achievable_flop_per_s.get(name), known.peak(name)
            if reached and peak and abs(peak / sheet - 1) < 0.02:
                return reached / peak
    return None


@lru_cache
def _devices_of_chip(sm: int | None, boost_hz: float | None) -> tuple[str, ...]:
    """Names of the devices with as many SMs at this clock."""
    if sm is None or boost_hz is None:
        return ()
    return tuple(d.name for d in DEVICES if d.sm == sm and d.boost_hz == boost_hz)


def unknown_device(
    name: str, *, dense_flop_per_s: Mapping[str, float], byte_per_s: float, source: str
) -> Device:
    """A device that is not in the table, with its measured or given peaks alone."""
    return Device(
        name=name,
        vendor="unknown",
        dense_flop_per_s=dense_flop_per_s,
        byte_per_s=byte_per_s,
        source=source,
        sparse_24=False,  # unknown counts as no
    )


def devices_json() -> dict[str, list[dict[str, Any]]]:
    """The table as `devices --json` prints it."""
    return {"devices": [device_json(device) for device in DEVICES]}


def device_json(device: Device) -> dict[str, Any]:
    """One device as plain values."""
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
    return " ".join(name.split()).lower()


# What nvidia-smi and rocm-smi add to a name.
_ADDED_WORDS = frozenset(
    (
        "nvidia",
        "amd",
        "apple",
        "instinct",
        "geforce",
        "tesla",
        "corporation",
        "inc",
        "graphics",
        "oam",
        "vf",
    )
)


def _words(name: str) -> tuple[str, ...]:
    """The words of a name that distinguish devices, in order."""
    plain = re.sub(r"\((r|tm|c)\)|[^a-z0-9]+", " ", name.lower())
    return tuple(word for word in plain.split() if word not in _ADDED_WORDS)


# Names of CPUs, in words.
_CPU = re.compile(
    r"\b(cpu|xeon|epyc|ryzen|threadripper|graviton\d?|neoverse|altra|grace|core i\d|core ultra|"
    r"pentium)\b"
)
# Series of names by architecture; the first that fits. Numbers of professional boards return in
# several generations, which their names then say.
_SERIES = tuple(
    (re.compile(rf"\b({names})\b"), architecture)
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
    """Devices of the architecture that a name stands for: those that share its words, then the
    nearest number first; none where it stands for no architecture of the table."""
    words = " ".join(_words(name))
    plain = {word for word in _words(name) if word.isalpha()}
    architecture = next((known for names, known in _SERIES if names.search(words)), None)

    def far(device: Device) -> tuple[int, int, float]:
        alike = difflib.SequenceMatcher(None, words, " ".join(_words(device.name))).ratio()
        shared = plain.intersection(_words(device.name))
        return -len(shared), abs(_number(device.name) - _number(words)), -alike

    return sorted((d for d in DEVICES if architecture and d.architecture == architecture), key=far)


def _number(name: str) -> int:
    """The first number in a name, which orders the devices of a series; 0 without one."""
    found = re.search(r"\d{1,9}", name)
    return int(found.group()) if found else 0


def _ids(devices: list[Device]) -> str:
    return ", ".join(device.name for device in devices[:4])


def _holding(key: str) -> list[str]:
    """Ids and aliases that contain `key`."""
    found = [name for name in _BY_NAME if key and key in name]
    return sorted(found, key=lambda name: name.index(key))


def _nearest(key: str) -> list[str]:
    """Ids of the devices whose id or alias contains `key`, then the most similar ones."""
    close = [*_holding(key), *difflib.get_close_matches(key, _BY_NAME, n=8, cutoff=0.5)]
    ids = list(dict.fromkeys(_BY_NAME[one].name for one in close))
    return ids[:4] or [device.name for device in DEVICES][:4]


def _dtype(name: str) -> str:
    ours = dtype(name)
    if ours is None:
        raise PrunescopeError(
            f"no number format is called {name!r}", hint="one of bf16, fp16, tf32, fp32, fp8"
        )
    return ours


def _index() -> dict[str, Device]:
    by_name: dict[str, Device] = {}
    for device in DEVICES:
        for name in (device.name, *device.aliases):
            known = by_name.setdefault(_key(name), device)
            assert known is device, f"{name} names two devices"
    return by_name


def _index_of_words() -> dict[tuple[str, ...], Device]:
    """Devices by the words of their names, where these are unique: those of the MI250X and of one
    half of it are not."""
    found: dict[tuple[str, ...], list[Device]] = {}
    for name, device in _BY_NAME.items():
        found.setdefault(_words(name), []).append(device)
    return {words: one[0] for words, one in found.items() if len({d.name for d in one}) == 1}


_BY_NAME = _index()
_BY_WORDS = _index_of_words()
