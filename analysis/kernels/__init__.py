"""The kernels frame: one row per unit of device work, a pass adds columns.

In: a linked Trace and its device. Out: a polars frame with work, kind, role, bound, waves and gap
causes (ns, FLOP, bytes).
Exports: Kernels, `frame.build`, anatomy, what_if; `waits` says why a gap is (a copy, a sync, a late
host), `beside` what the host was in (a data loader), `waves` adds how a grid fills the device
(device/tiles computes it), `bound` takes the peaks and caveats those measured too far apart.
"""
