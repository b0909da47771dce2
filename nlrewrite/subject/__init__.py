"""The language model that is being rewritten: making or fetching it, loading it, and its sites.

In: a subject spec and, for the one we train, a corpus. Out: an artifact with a model folder (or a reference to one on
the hub) and its tokenizer. Invariant: a loaded subject is frozen, and what a site gives is the same whichever way it is
asked.
"""
