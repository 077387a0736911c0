"""A history of measurements: in, reports and a file of JSON lines; out, series and their changes.

`lines_of` makes a line of each phase of a report, `append_lines` adds them to the file, and
`series_of` follows each model, device and phase over the commits.
"""

from prunescope.analysis.history.history_file import append_lines as append_lines
from prunescope.analysis.history.history_file import read_lines as read_lines
from prunescope.analysis.history.measured_lines import lines_of as lines_of
from prunescope.analysis.history.series import series_of as series_of
