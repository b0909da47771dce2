"""What a reader of the sentences says about every context: a digit from 0 to 9, as a distribution.

In: sentences and the text of contexts, nothing else. Out: for each latent the positions where its sentence speaks, and
what it says there. Invariant: a simulator never sees an activation, and a sentence it cannot read is a counted failure.
"""
