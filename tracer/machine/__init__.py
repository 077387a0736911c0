"""The machine that prunescope runs on.

In: the name of a device. Out: its properties, clocks, measured peaks and rates, and what disturbed
a measurement. Exports: `device.device_info`, `peaks.measure_peaks`, `calibrate.calibrate`,
`doctor.examine`, and `backends.backend_of`, which says what torch calls things on a device.
"""
