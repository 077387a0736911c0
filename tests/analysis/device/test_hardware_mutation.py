"""A wrong number anywhere in the device table is diagnostics: each is changed in turn.

What notices it: the data sheets as published (below), the second witness of peaks and bandwidths,
and what CUDA's and ROCm's occupancy tables say of an architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import pytest

from prunescope.analysis.device import hardware

# Published: bf16, fp16, tf32, fp32, fp8 in dense TFLOP/s, GB/s, MiB of L2, SMs. "-": no such unit.
SHEETS = """
v100-sxm2                       -      125    -      15.7   -       900   6    80
v100-pcie                       -      112    -      14     -       900   6    80
v100-16gb-sxm2                  -      125    -      15.7   -       900   6    80
v100-16gb-pcie                  -      112    -      14     -       900   6    80
t4                              -      65     -      8.1    -       320   4    40
a10                             125    125    62.5   31.2   -       600   6    72
a10g                            70     70     35     35     -       600   6    80
l4                              121    121    60     30.3   242     300   48   58
l40s                            362    362    183    91.6   733     864   96   142
rtx-6000-ada                    364.2  364.2  182.1  91.1   728.5   960   96   142
a100-40gb-sxm                   312    312    156    19.5   -       1555  40   108
a100-40gb-pcie                  312    312    156    19.5   -       1555  40   108
a100-80gb-sxm                   312    312    156    19.5   -       2039  40   108
a100-80gb-pcie                  312    312    156    19.5   -       1935  40   108
a800-80gb-sxm                   312    312    156    19.5   -       2039  40   108
a40                             149.7  149.7  74.8   37.4   -       696   6    84
rtx-a6000                       154.8  154.8  77.4   38.7   -       768   6    84
h20                             148    148    74     44     296     4000  60   78
h100-pcie                       756    756    378    51     1513    2000  50   114
h100-sxm                        989    989    494.5  67     1979    3350  50   132
h100-nvl                        835    835    417    60     1671    3900  50   132
h200-sxm                        989    989    494.5  67     1979    4800  50   132
h800-sxm                        989    989    494.5  67     1979    3350  50   132
b200                            2250   2250   1125   80     4500    8000  126  148
gb200                           2500   2500   1250   80     5000    8000  126  152
b300                            2250   2250   1125   75     4500    8000  126  148
gb300                           2500   2500   1250   80     5000    8000  126  152
rtx-5070-ti                     87.9   87.9   43.9   43.9   175.8   896   48   70
rtx-5070                        61.7   61.7   30.9   30.9   123.5   672   48   48
rtx-2080-ti                     -      53.8   -      13.4   -       616   5.5  68
rtx-3060                        25.5   25.5   12.7   12.7   -       360   3    28
rtx-4080                        97.5   97.5   48.7   48.7   194.9   716.8 64   76
rtx-4080-laptop                 -      -      -      -      -       432   48   58
gh200                           989    989    494.5  67     1979    4000  50   132
gh200-144gb                     989    989    494.5  67     1979    4900  50   132
rtx-3090                        71     71     35.6   35.6   -       936   6    82
rtx-4090                        165.2  165.2  82.6   82.6   330.3   1008  72   128
rtx-5090                        209.5  209.5  104.8  104.8  419     1792  96   170
rtx-pro-6000-blackwell          504    504    252    125    1008    1792  128  188
rtx-pro-6000-blackwell-server   504    504    252    125    1008    1597  128  188
mi250x                          383    383    -      47.9   -       3280  16   220
mi250x-gcd                      191.5  191.5  -      23.95  -       1638  8    110
mi210                           181    181    -      22.6   -       1638  8    104
mi300x                          1307.4 1307.4 653.7  163.4  2614.9  5300  32   304
mi325x                          1307.4 1307.4 653.7  163.4  2614.9  6000  32   304
mi355x                          2500   2500   -      157.3  5000    8000  32   256
a30                             165    165    82     10.3   -      933   24   56
l40                             181.05 181.05 90.5   90.5   362    864   96   142
l20                             119.5  119.5  59.8   59.35  239    864   96   92
rtx-3080                        59.5   59.5   29.8   29.8   -      760   5    68
rtx-4070                        58.3   58.3   29.1   29.1   116.6  504   36   46
rtx-4070-super                  71     71     35.5   35.5   141.9  504   48   56
rtx-4070-ti                     80.2   80.2   40.1   40.1   160.4  504   48   60
rtx-4070-ti-super               88.2   88.2   44.1   44.1   176.4  672   48   66
rtx-5080                        112.6  112.6  56.3   56.3   225.1  960   64   84
mi350x                          2306.9 2306.9 -      144.2  4613.7 8000  32   256
h200-nvl                        835    835    417    60     1671    4800  50   132
quadro-rtx-6000                 -      130.5  -      16.3   -       672   6    72
gb10                            125    125    62.5   31.2   250     273   24   48
mi250                           362.1  362.1  -      45.3   -       3280  16   208
apple-m1                        -      2.6    -      2.6    -       68.25 8    8
apple-m1-max                    -      10.4   -      10.4   -       400   48   32
apple-m2                        -      3.6    -      3.6    -       100   8    10
apple-m2-max                    -      13.6   -      13.6   -       400   48   38
apple-m2-ultra                  -      27.2   -      27.2   -       800   96   76
apple-m3-max                    -      14.1   -      14.1   -       400   48   40
apple-m4                        -      3.8    -      3.8    -       120   8    10
apple-m4-pro                    -      8.1    -      8.1    -       273   24   20
apple-m4-max                    -      16.2   -      16.2   -       546   48   40
epyc-7742                       -      -      -      4.608  -       204.8 32   64
grace-cpu                       -      -      -      7.1    -       512  72   72
a64fx                           -      13.5   -      6.76   -       1024 32   48
"""
# GB of memory, as sold.
MEMORY = {
    10: ("rtx-3080",),
    11: ("rtx-2080-ti",),
    12: (
        "rtx-3060",
        "rtx-4080-laptop",
        "rtx-4070",
        "rtx-4070-super",
        "rtx-4070-ti",
        "rtx-5070",
    ),
    16: (
        "v100-16gb-sxm2",
        "v100-16gb-pcie",
        "t4",
        "rtx-4080",
        "rtx-4070-ti-super",
        "rtx-5080",
        "rtx-5070-ti",
        "apple-m1",
    ),
    24: ("a10", "a10g", "a30", "l4", "rtx-3090", "rtx-4090", "apple-m2", "quadro-rtx-6000"),
    32: ("v100-sxm2", "v100-pcie", "rtx-5090", "apple-m4", "a64fx"),
    40: ("a100-40gb-sxm", "a100-40gb-pcie"),
    48: ("a40", "l20", "l40", "l40s", "rtx-6000-ada", "rtx-a6000"),
    64: ("mi250x-gcd", "mi210", "apple-m1-max", "apple-m4-pro"),
    80: ("a100-80gb-sxm", "a100-80gb-pcie", "a800-80gb-sxm", "h100-sxm", "h100-pcie", "h800-sxm"),
    94: ("h100-nvl",),
    96: ("gh200", "h20", "rtx-pro-6000-blackwell", "rtx-pro-6000-blackwell-server", "apple-m2-max"),
    128: ("mi250x", "apple-m3-max", "apple-m4-max", "mi250", "gb10"),
    141: ("h200-sxm", "h200-nvl"),
    144: ("gh200-144gb",),
    180: ("b200",),
    186: ("gb200",),
    192: ("mi300x", "apple-m2-ultra"),
    256: ("mi325x",),
    270: ("b300",),
    279: ("gb300",),
    288: ("mi350x", "mi355x"),
    None: ("epyc-7742", "grace-cpu"),  # as fitted
}
DTYPES = ("bf16", "fp16", "tf32", "fp32", "fp8")
# Dense int8 in TOP/s, where the sheets print it.
INT8 = {
    "t4": 130,
    "a10": 250,
    "l4": 242,
    "l40s": 733,
    "a100-40gb-sxm": 624,
    "a100-40gb-pcie": 624,
    "a100-80gb-sxm": 624,
    "a100-80gb-pcie": 624,
    "a800-80gb-sxm": 624,
    "a30": 330,
    "a40": 299.4,
    "rtx-a6000": 309.6,
    "h100-sxm": 1979,
    "h200-sxm": 1979,
    "h100-pcie": 1513,
    "gh200": 1979,
    "gh200-144gb": 1979,
    "rtx-4090": 660.6,
    "rtx-4080": 389.9,
}  # fmt: skip
# Dense TFLOP/s of 4-bit blocks: HGX and NVL72 sheets by GPU, MXFP4 of AMD, half of the AI TOPS of
# GeForce and DGX Spark, which count sparsity.
FOUR_BITS = {
    "b200": {"fp4": 9000}, "gb200": {"fp4": 10000}, "b300": {"fp4": 13500}, "gb300": {"fp4": 15000},
    "rtx-5070": {"fp4": 494}, "rtx-5070-ti": {"fp4": 703}, "rtx-5080": {"fp4": 900.6},
    "rtx-5090": {"fp4": 1676}, "rtx-pro-6000-blackwell": {"fp4": 2016},
    "rtx-pro-6000-blackwell-server": {"fp4": 2016}, "gb10": {"fp4": 500},
    "mi350x": {"mxfp4": 9227.5}, "mi355x": {"mxfp4": 10066},
}  # fmt: skip
# The best GEMM that anybody has published, TFLOP/s.
BEST = {
    "a100-80gb-sxm": {"bf16": 271.2, "int8": 356},
    "a100-80gb-pcie": {"bf16": 252.9, "int8": 356},
    "h100-pcie": {"fp8": 690}, "rtx-4090": {"fp8": 306}, "rtx-5080": {"fp8": 240},
    "gb10": {"fp8": 180},
    "h100-sxm": {"bf16": 794.5, "fp8": 1402.6}, "gh200": {"bf16": 828.6, "fp8": 1535},
    "b200": {"bf16": 1745, "fp8": 3432.5},
    "gb200": {"bf16": 1822, "fp8": 3615.6}, "rtx-pro-6000-blackwell": {"bf16": 347},
    "mi300x": {"bf16": 708, "fp16": 654, "fp8": 1273},
    "mi325x": {"bf16": 843, "fp16": 794, "fp8": 1519}, "mi355x": {"bf16": 1565},
}  # fmt: skip
# Warps (of 32; waves of 64) and blocks an SM, KiB of shared memory, Ki registers of 32 bits.
OCCUPANCY = {
    "volta": (64, 32, 96, 64), "turing": (32, 16, 64, 64), "ampere-100": (64, 32, 164, 64),
    "ampere-10x": (48, 16, 100, 64), "ada": (48, 24, 100, 64), "hopper": (64, 32, 228, 64),
    "blackwell-100": (64, 32, 228, 64), "blackwell-12x": (48, 24, 100, 64),
    "apple": (None, None, None, None), "cpu": (None, None, None, None),
    "cdna2": (32, None, 64, 128), "cdna3": (32, None, 64, 128), "cdna4": (32, None, 160, 128),
}  # fmt: skip
# GB/s in one direction: 16 lanes of so many GT/s, 128 of 130 bits data; half of 900 in both.
LINKS = {**{f"pcie-{i}.0": 16 * 2**i * 128 / 130 / 8 for i in (3, 4, 5)}, "nvlink-c2c": 450}
# MiB behind L2
LAST_LEVEL = {
    "mi300x": 256, "mi325x": 256, "mi350x": 256, "mi355x": 256, "epyc-7742": 256, "grace-cpu": 117,
}  # fmt: skip


def table() -> dict[str, Any]:
    text = (
        resources.files("prunescope.analysis.device")
        .joinpath("devices.json")
        .read_text(encoding="utf-8")
    )
    found: dict[str, Any] = json.loads(text)
    return found


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every number in the table."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from numbers(inner, (*path, key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


PATHS = [path for path in numbers(table()) if path != ("format",)]


def wrong(found: dict[str, Any], devices: list[Any] | None = None) -> list[str]:
    """Everything that the three sources contradict; of all devices, or of these."""
    out = [f"{name}: limits" for name, row in found["architectures"].items()
           if occupancy(row) != OCCUPANCY[name]]  # fmt: skip
    sheets = {line.split()[0]: line.split()[1:] for line in SHEETS.strip().splitlines()}
    rates = {name: one["gb_per_s"] for name, one in found["links"].items()}
    if rates != pytest.approx(LINKS, rel=1e-3):
        out.append("links")
    if [row["name"] for row in found["devices"] if row["name"] not in sheets]:
        out.append("a device without a sheet")
    for row in found["devices"] if devices is None else devices:
        out += [f"{row['name']}: {what}" for what in _wrong(row, found, sheets[row["name"]])]
    return out


def occupancy(row: dict[str, Any]) -> tuple[Any, ...]:
    if row["max_threads_per_sm"] is None:  # not published
        return (None, row["max_blocks_per_sm"], row["shared_bytes_per_sm"], row["registers_per_sm"])
    return (row["max_threads_per_sm"] / row["warp"], row["max_blocks_per_sm"],
            row["shared_bytes_per_sm"] / 1024, row["registers_per_sm"] / 1024)  # fmt: skip


def _wrong(row: dict[str, Any], found: dict[str, Any], sheet: list[str]) -> Iterator[str]:
    name = row["name"]
    published = {d: float(v) for d, v in zip(DTYPES, sheet, strict=False) if v != "-"}
    published |= {"int8": INT8[name]} if name in INT8 else {}
    published |= FOUR_BITS.get(name, {})
    if row["dense_tflop_per_s"] != published:
        yield "peaks"
    if [row["gb_per_s"], row["l2_mib"], row["sm"]] != [float(v) for v in sheet[5:]]:
        yield "bandwidth, L2 or SMs"
    if name not in MEMORY.get(row.get("memory_gb"), ()):
        yield "memory"
    if row.get("achievable_tflop_per_s", {}) != BEST.get(name, {}):
        yield "best GEMM"
    if row.get("llc_mib") != LAST_LEVEL.get(name):
        yield "last-level cache"
    device = hardware._device(row, found["architectures"][row["architecture"]])
    for dtype, peak in device.dense_flop_per_s.items():
        again = device.witness_flop_per_s(dtype)
        if again is not None and again != pytest.approx(peak, rel=0.05):
            yield f"witness of {dtype}"
    if device.witness_byte_per_s() != pytest.approx(device.byte_per_s, rel=0.05):
        yield "witness of the bandwidth"


def test_nothing_is_wrong_as_it_is() -> None:
    assert wrong(table()) == []
    assert len(table()["devices"]) == len(SHEETS.strip().splitlines())


@pytest.mark.parametrize("by", [1.15, 0.85])
def test_a_change_of_any_number_is_noticed(by: float) -> None:
    """Every number of the table, one after the other."""
    assert len(PATHS) > 500
    missed = []
    changed = table()
    for path in PATHS:
        place: Any = changed
        for key in path[:-1]:
            place = place[key]
        before = place[path[-1]]
        place[path[-1]] = before * by
        # What is changed in one device, the other devices do not tell.
        if not wrong(changed, [changed["devices"][path[1]]] if path[0] == "devices" else None):
            missed.append("/".join(map(str, path)))
        place[path[-1]] = before
    assert missed == [] and changed == table()


@pytest.mark.parametrize("name", ["h100_vit", "b200_eager", "v100_legacy_graphs",
                                  "a100_legacy_flows", "mi300x_compile_triton"])  # fmt: skip
def test_the_limits_are_those_that_traces_tell(name: str, real_trace: Any) -> None:
    """A third witness: the properties that the driver gave the profiler."""
    from prunescope.analysis.trace.load import load

    told = load(real_trace(f"{name}.json.gz")).source.meta["deviceProperties"][0]
    device = hardware.device_in_trace(told["name"])
    assert device is not None
    assert device.sm == told["numSms"]
    for key, field in (
        ("warpSize", "warp"), ("maxThreadsPerMultiprocessor", "max_threads_per_sm"),
        ("regsPerMultiprocessor", "registers_per_sm"),
        ("sharedMemPerMultiprocessor", "shared_bytes_per_sm"),
    ):  # fmt: skip
        if told.get(key):
            assert getattr(device, field) == told[key], key
