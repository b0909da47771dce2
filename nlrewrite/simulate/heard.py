"""A simulation as it was stored, whichever simulator it was: rules, gates or a language model.

In: the artifact of a simulation, and how many positions its split has. Out: what was said, in the form that calibrators
read. Invariant: who reads it cannot tell simulators apart but by the contexts they were asked about.
"""

from nlrewrite.artifacts import Folder
from nlrewrite.simulate import answers, rules
from nlrewrite.simulate.answers import Answered, Columned
from nlrewrite.simulate.rules import Simulated
from nlrewrite.simulate.said import Said, Spoken

ANSWERS = "answers"


def heard(folder: Folder, contexts: int) -> Spoken | Answered:
    if folder.manifest.artifact.kind == ANSWERS:
        return answers.read(folder, contexts)
    return Spoken(rules.read(folder), contexts)


def levels(said: Said) -> Simulated:
    """What was said as pairs with a whole level, to look at."""
    assert isinstance(said, Spoken | Columned), f"{type(said).__name__} has no levels"
    return said.simulated if isinstance(said, Spoken) else said.levels()
