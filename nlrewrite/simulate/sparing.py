"""An engine that answers fewer questions in full, set up by a pilot on contexts that it decides nothing about.

In: how to spare (`AskSpec.screen`), the engine, the compiled prompt and the sentences, and contexts and activations of
the explain split. Out: the engine, or the engine behind a screen: an early exit of its own model, or a smaller reader.
Invariants: the pilot's contexts are of the explain split, on which nothing is calibrated or reported; what goes on is
answered to the bit as without a screen; what does not is SKIPPED, and counts as digit 0 like a closed gate.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nlrewrite.errors import SettingError
from nlrewrite.language.prompts import Prompts
from nlrewrite.llm.engine import Engine, PrefixBlock
from nlrewrite.llm.purse import check_asked
from nlrewrite.questions import AskSpec
from nlrewrite.simulate import screen
from nlrewrite.simulate.cascade import Cascade, expected_digit, filed, thresholds
from nlrewrite.simulate.screen import Screened


def behind(
    spec: AskSpec,
    engine: Engine,
    prompts: Prompts,
    said: Sequence[dict[str, Any]],
    shown: Sequence[str],
    frequency_L: np.ndarray,
    smaller: Callable[[], Engine] | None,
) -> Engine:
    """`engine` behind the screen that `spec` names.

    `said`: what the prompt says of each latent that is asked about, its sentence and perhaps a score; `shown`: the
    pilot's contexts; `frequency_L`: how often those latents are active; `smaller` opens the cheap reader.
    """
    by_prefix = spec.order == "explanation"
    own = [prompts.prefix(**each) if by_prefix else prompts.suffix(**each) for each in said]
    blocks = _blocks(prompts, own, shown, by_prefix)
    if spec.screen == "cascade":
        assert smaller is not None, "a cascade needs a smaller reader"
        cheap = smaller()
        told, full = (_digits(each, blocks, by_prefix) for each in (cheap, engine))
        found = thresholds(told, full, frequency_L, spec.screen_recall)
        return Cascade(cheap, engine, filed(own, found), by_prefix=by_prefix)
    from nlrewrite.llm.packed import Packed

    if not isinstance(engine, Packed):
        raise SettingError(
            f"only the packed engine can leave its model early: engine={engine.name}. Use --engine packed"
        )
    seen = screen.pilot(engine, blocks, spec.screen_layer)
    if by_prefix:  # a block is a latent there, and a context here
        seen = screen.Pilot(seen.hidden_LSD.swapaxes(0, 1), seen.digit_LS.T, seen.layer)
    half = len(shown) // 2
    first, second = seen.at(np.arange(half)), seen.at(np.arange(half, len(shown)))
    fitted = screen.fitted(first, second, frequency_L, spec.screen_recall, len(engine.anatomy.layers))
    return Screened(engine, fitted.probe, filed(own, fitted.threshold_L), by_prefix=by_prefix)


def _blocks(prompts: Prompts, own: Sequence[np.ndarray], shown: Sequence[str], by_prefix: bool) -> list[PrefixBlock]:
    """Every latent with every context: a block for each latent, or for each context."""
    if by_prefix:
        suffixes = [prompts.suffix(context=context) for context in shown]
        return [PrefixBlock.of(prefix, suffixes, prompts.labels) for prefix in own]
    return [PrefixBlock.of(prompts.prefix(context=context), own, prompts.labels) for context in shown]


def _digits(engine: Engine, blocks: Sequence[PrefixBlock], by_prefix: bool) -> np.ndarray:
    """Expected digits [L, S]."""
    found: list[np.ndarray] = []
    for block in blocks:
        scores = engine.digits(block)
        check_asked(scores.outcome)
        found.append(expected_digit(scores))
    return np.stack(found) if by_prefix else np.stack(found).T
