"""Evidence for a paper in one zip that can be checked.

In: runs. Out: a zip, anonymous if asked for; or the parts of a zip that fail verification. Exports:
`bundle.bundle`, `verify.verify`.
"""
