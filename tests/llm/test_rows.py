import pytest
import torch

from nlrewrite.llm.rows import last_logits, rows
from tests.subject.small_models import fresh


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_each_question_has_the_logits_of_its_prompt_alone(family: str) -> None:
    model = fresh(family)
    model.set_attn_implementation("sdpa")
    prefixes = [[5, 6, 7, 8], [9]]
    suffixes = [[[1, 2], [3], [4, 4, 4]], [[1, 2, 3, 4, 5], [6]]]
    with torch.no_grad():
        found = last_logits(model, rows(prefixes, suffixes))
        alone = [
            model(input_ids=torch.tensor([prefix + suffix])).logits[0, -1]
            for prefix, each in zip(prefixes, suffixes, strict=True)
            for suffix in each
        ]
    assert torch.allclose(found, torch.stack(alone), atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 1e-2
