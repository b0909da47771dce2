"""The coder's activations on a split: sparse, with what is known of every latent from them.

In: the subject, the coder, the windows of a split. Out: the k active latents of every position, a table of latents, and
example windows by decile. Invariant: positions x latents is never held in memory.
"""
