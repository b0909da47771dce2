"""Put predicted activations in place of true ones and measure what that costs the subject in next-token loss.

In: the subject, the coder, true and simulated activations of the report split, fitted calibrators. Out: one row of
losses per arm and document group, and a table of paired differences with their intervals. Invariant: every arm sees
the same windows and the same latents, and at fraction 1 no true activation is used anywhere.
"""
