"""The kernels frame: one row per unit of device work, a pass adds columns.

In: a linked Trace and its device. Out: a polars frame with work, kind, role, bound, waves and gap
causes (ns, FLOP, bytes).
Exports: Kernels, `frame.build`, anatomy, what_if; `waits` says why a gap is (a copy, a sync, a late
host), `waves` how a grid fills the device.
"""
