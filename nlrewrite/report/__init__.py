"""What a rewriting achieved, for people and for programs: `report.html` and `results.json`.

In: every artifact of a rewriting. Out: one page that stands alone, and the numbers it shows. Invariant: nothing is
measured here, and nothing that came from a text or a model reaches the page unescaped.
"""
