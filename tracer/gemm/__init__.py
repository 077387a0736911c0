"""GEMMs alone: each shape of a run, or those given, replayed outside of its model.

GemmCases and a GemmTimer come in; Replays (`taxonomy.replays`) go out, and torch scripts that
reproduce a GEMM. The room is used through `replay.replay`, `device_timer.DeviceTimer`,
`script.write_scripts` and `steps.fit_steps`.
"""
