"""A trace, read as hostile input: a Chrome trace, or an SQLite export of Nsight Systems.

In: a file, a member of a zip, a device of an export, a folder of ranks. Out: a Trace: int64
columns (ns), strings interned.
Exports: Trace, `load.load`, ranks, `nsys` (exports of Nsight Systems); `unpack` says what is a
bomb, and refuses it in gzip and tar; `reader` refuses it in zips; `workers` start processes that
read one large file together, `shares` puts their parts together.
"""
