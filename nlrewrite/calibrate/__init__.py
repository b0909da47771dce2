"""From what a simulator says to what an activation is worth: maps fitted on the calibrate split.

In: simulated levels and true activations of the same positions. Out: per latent and level a value, for each calibrator.
Invariant: nothing of the report split is used but by the calibrators whose `information` says "test marginals".
"""
