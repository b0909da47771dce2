"""Language models that are asked: engines behind one small protocol, and the models they run.

In: token ids. Out: log-probabilities of a few labels (the ten digits) for many suffixes of one prefix, or completions.
Invariant: all engines agree to rounding error, and a question without an answer is a typed outcome, never a number.
"""
