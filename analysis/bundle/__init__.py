"""Evidence for a paper in one zip that checks itself.

In: runs. Out: a zip, anonymous where asked for; or the parts of a zip that fail verification.
Exports: `bundle.bundle`, `verify.verify`.
"""
