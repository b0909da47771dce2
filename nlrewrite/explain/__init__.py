"""From what a latent does to a sentence that says so.

In: the latent's activations on the explain split. Out: one explanation per latent, or a stated reason why there is
none. Invariant: only the explain split is looked at.
"""
