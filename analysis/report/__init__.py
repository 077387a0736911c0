"""Renderers: they see the schema, compute nothing, and escape every string.

In: a Report or a Comparison. Out: text, Markdown, HTML, LaTeX, CSV, figures, Perfetto.
Exports: `write.write_report`, `terminal`, `listings`; `titles`, `sentences` and `measured` word
what every format says.
"""
