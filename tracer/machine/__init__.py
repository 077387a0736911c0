"""The machine that prunescope runs on.

The name of a device comes in; its properties, clocks, measured peaks and rates, and the conditions
of a measurement go out. The room is used through `device.device_info`, `peaks.measure_peaks`,
`calibrate.calibrate` and `doctor.examine`.
"""
