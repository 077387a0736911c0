"""The machine that prunescope runs on.

In: a device's name. Out: properties, clocks, measured peaks and rates, conditions.
Exports: `device.device_info`, `peaks.measure_peaks`, calibrate, doctor.
"""
