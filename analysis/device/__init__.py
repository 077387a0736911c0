"""The hardware: peaks, tiles, waves and tensor cores.

In: a device's name, or a kernel's launch.
Out: peaks in FLOP/s and byte/s, or waves and their efficiency.
Exports: `hardware` (Device, DEVICES), `tiles` (tiles and waves of a kernel, and dimensions that
fill their waves), `cores` (tensor or CUDA cores).
"""
