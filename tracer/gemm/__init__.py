"""GEMMs alone: each shape of a run, or those given, replayed outside of its model.

In: GemmCases and a GemmTimer. Out: Replays (`taxonomy.replays`), and torch scripts that reproduce a
GEMM. Exports: `replay.replay`, `device_timer.DeviceTimer`, `script.write_scripts` and
`steps.fit_steps`.
"""
