"""Engines and questions for tests of the server engine: little patience, prompts of words."""

from typing import Any

import numpy as np

from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling, Scores
from nlrewrite.llm.patience import Patience
from nlrewrite.llm.server import Server
from tests.llm.random_models import LABELS, tokenizer
from tests.llm.small_server import Small, cheap

HASTY = Patience(backoff=0.01, longest=2.0, connect=1.0, rest=0.05)
TOKENIZER = tokenizer()


def engine(small: Small | str, *, mode: Any = "ids", **given: Any) -> Server:
    endpoint = small if isinstance(small, str) else small.endpoint
    settings = {"timeout": 20.0, "tries": 3, "patience": HASTY, "model": "small"} | given
    return Server(endpoint, tokenizer=TOKENIZER, mode=mode, **settings)


def questions(count: int, prefix: int = 5) -> PrefixBlock:
    """Suffixes of one to three tokens, all different, behind one prefix."""
    suffixes = [[20 + index % 40, 20 + index // 40, 30][: 1 + index % 3 + (index >= 40)] for index in range(count)]
    return PrefixBlock.of(list(range(2, 2 + prefix)), suffixes, LABELS)


def truth(block: PrefixBlock) -> tuple[np.ndarray, np.ndarray]:
    """Renormalised log-probabilities [N, K] and the log of the mass [N], by the cheap function."""
    whole = [block.prefix.tolist() + block.suffix(index).tolist() for index in range(len(block))]
    raw_NK = np.array([[cheap(ids)[label] for label in block.labels] for ids in whole])
    logmass_N = np.logaddexp.reduce(raw_NK, axis=1)
    return raw_NK - logmass_N[:, None], logmass_N


def ids_of(seen: Any) -> list[list[int]]:
    """Prompts of a request that is no probe: a question begins with the prefix."""
    return [prompt for prompt in seen.prompts if isinstance(prompt, list) and prompt[0] == 2]


def asked(small: Small) -> list[int]:
    """How many questions each request held, probes left out."""
    return [len(ids_of(each)) for each in small.seen if ids_of(each)]


def ready(small: Small, **given: Any) -> Server:
    """An engine that has probed its endpoint, whose next request is a question's."""
    server = engine(small, **given)
    server.digits(questions(1))
    server.complete([np.array([2, 3])], Sampling(most=1))
    small.seen.clear()
    server.usage.failed.clear()
    return server


def right(scores: Scores, of: PrefixBlock) -> np.ndarray:
    """Which questions were answered; those that were have the right numbers, the others none."""
    known = scores.outcome == Outcome.OK
    np.testing.assert_allclose(scores.logp[known], truth(of)[0][known], atol=1e-5)
    assert np.isnan(scores.logp[~known]).all()
    return known
