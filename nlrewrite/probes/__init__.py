"""Questions about the method, answered on the same subject and coder as the rewriting, by simulators of known quality.

In: a subject, a coder, true activations, and what the rules said. Out: for every probe `rows.parquet`, a row for each
point with all its keys and intervals, and `summary.json`. Invariant: what is fitted sees the explain and the calibrate
split, what is measured is the report split, and every difference is of the same windows.
"""
