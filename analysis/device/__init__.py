"""The hardware: peaks, tiles, waves and tensor cores.

A device's name gives peaks in FLOP/s and byte/s; a kernel's launch gives waves and their
efficiency. Exports: `hardware` (Device, DEVICES), `tiles` (tiles and waves of a kernel, and
dimensions that fill their waves), `cores` (tensor or CUDA cores).
"""
