"""Sparse coders: a wide layer of latents, of which few are active on a token, that stands in for part of the subject.

In: the subject's activations at a site. Out: weights whose latents can be explained one by one. Invariant: the decoder
is linear in the latents, so an explanation of every latent is an explanation of what the coder computes.
"""
