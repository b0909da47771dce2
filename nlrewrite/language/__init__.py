"""Controlled English about tokens: sentences that a machine can both write and read.

In: a rule (which tokens a latent fires on, how strongly, and what before them strengthens or weakens it). Out: one or a
few plain sentences; or back. Invariant: `parse(write(rule)) == rule`, and a reader needs nothing but the sentence and
the text of the context.
"""
