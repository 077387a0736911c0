"""The kernels of a phase: one row per unit of device work, to which each pass adds columns.

In: a trace and the windows of its steps. Out: `Kernels`, with work, kind, role, bound, waves and
causes of idle time (ns, FLOP, bytes).
Exports: `frame.Kernels` is the record; `linked_phase` reads what it shares with its views, and
`build.PASSES` lists the passes in their order. `work_split` divides an op's work among its kernels;
`row_roles`, `role` and `role_shapes` find the layer and role of a row; `graph_replay` gives graph
replays the ops of an eager trace; `peaks` holds what a device can do at most, and `roofline` adds
tiles, waves and the least time; `idle` gives each gap a cause, and `host_calls` lists the runtime
calls behind it. `anatomy`, `what_if` and `phase_kind` read the finished kernels.
"""
