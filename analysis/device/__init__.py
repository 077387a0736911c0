"""The silicon: peaks, tiles, waves, tensor cores.

In: a device's name or a kernel's launch. Out: peaks in FLOP/s and byte/s; waves and their
efficiency.
Exports: Device, DEVICES, `cores`; `tiles` has the arithmetic from a tile to a wave.
"""
