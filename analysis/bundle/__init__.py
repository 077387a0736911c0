"""Evidence for a paper in one zip that checks itself.

In: runs. Out: a zip, anonymous where asked for; or what of a zip does not verify.
Exports: `bundle.bundle`, `verify.verify`.
"""
