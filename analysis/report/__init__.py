"""Renderers: they see the schema, compute nothing, and escape every string.

In: a Report or a Comparison. Out: text, Markdown, HTML, LaTeX, CSV, figures, Perfetto.
Exports: `write.write_report`, `terminal`, `listings`; `sentences` and `device_sentence` word what
several formats say.
"""
