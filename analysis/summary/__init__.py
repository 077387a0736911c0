"""The answer of a phase: its headline, its paragraph, and why its times may be no evidence.

In: a Phase of the schema, whose values stand. Out: plain sentences with units, unescaped, and the
rows of GEMMs that readers take for one. Every format of a report shows what is made here. Exports:
`paragraph.summary`, `headline.headline`, `evidence.phase_reasons`, `labels.LEDGER`,
`gemm_rows.merge_rows`.
"""
