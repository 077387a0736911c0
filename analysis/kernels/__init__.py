"""The kernels frame: one row per unit of device work, a pass adds columns.

In: a linked Trace and its device. Out: a polars frame with work, kind, role, bound, waves and
causes of idle time (ns, FLOP, bytes).
Exports: Kernels, `frame.build`, anatomy, what_if; `idle` gives each gap a cause (a copy, a sync,
late launches) and names what the host was in (a data loader); `host_calls` has the runtime calls
behind it; `peaks` holds what a device can do at most, `roofline` adds tiles, waves, ideal time and
bound (device/tiles computes them); `work_split` divides an op's work among its kernels; `role` and
`role_shapes` say where in the model a row belongs; `replay` maps graph replays to an eager pass;
`phase_kind` labels the phase of a trace without run.json (docs/architecture.md says who else does).
"""
