"""A history of measurements over commits.

In: reports, and a file of JSON lines. Out: the lines of a report, and series of each model, device
and phase with the commits that changed them.
Exports `measured_lines.lines_of`, `history_file.append_lines`, `history_file.read_lines`,
`series.series_of`.
"""
