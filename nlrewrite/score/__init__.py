"""How well a sentence tells when its latent is active.

In: simulated levels and true activations of the calibrate split. Out: one row of scores per latent. Invariant: nothing
of the report split is used, so that latents may be ranked by a score before they are rewritten.
"""
