import pytest
import torch
from transformers import AutoModelForCausalLM

from nlrewrite.errors import SettingError
from nlrewrite.llm import lora
from tests.subject.small_models import fresh, ids

FAMILIES = ("llama", "gpt_neox")


def disturbed(parameters: list[torch.nn.Parameter]) -> None:
    draws = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=draws)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapted_model_says_at_first_what_the_model_said(family: str) -> None:
    model = fresh(family)
    with torch.no_grad():
        before = model(ids()).logits
        lora.adapt(model, 4, 8.0, 0)
        assert torch.equal(model(ids()).logits, before)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_says_what_the_adapted_one_said_and_is_saved_as_any(family: str, tmp_path) -> None:
    model = fresh(family)
    names = set(model.state_dict())
    with torch.no_grad():
        before = model(ids()).logits
        disturbed(lora.adapt(model, 4, 8.0, 0))
        adapted = model(ids()).logits
        lora.merge(model)
        merged = model(ids()).logits
    assert (adapted - before).abs().max() > 0.1
    assert torch.allclose(merged, adapted, atol=1e-4)
    assert set(model.state_dict()) == names
    model.save_pretrained(tmp_path)
    read = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    with torch.no_grad():
        assert torch.equal(read(ids()).logits, merged)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_adapters_have_gradients_and_all_of_them(family: str) -> None:
    model = fresh(family)
    parameters = lora.adapt(model, 4, 8.0, 0)
    disturbed(parameters)
    model(ids()).logits.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in parameters)
    ours = {id(parameter) for parameter in parameters}
    assert all(each.grad is None and not each.requires_grad for each in model.parameters() if id(each) not in ours)
    linears = [name for name, _ in model.named_modules() if name.rpartition(".")[2] in lora.TARGETS]
    assert len(parameters) == 2 * len(linears) and linears


def test_adapters_come_from_the_seed_and_the_place_alone() -> None:
    first, again, other = (lora.adapt(fresh("llama"), 4, 8.0, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[2])


def test_half_precision_weights_are_merged_in_full_precision() -> None:
    linear = torch.nn.Linear(8, 8, bias=False).to(torch.bfloat16)
    before = linear.weight.detach().float().clone()
    adapted = lora.Adapted(linear, 2, 1.0, torch.Generator().manual_seed(0))
    disturbed([adapted.up_OR])
    wanted = before + adapted.up_OR.detach() @ adapted.down_RI.detach()
    merged = adapted.merged().weight
    assert merged.dtype == torch.bfloat16 and torch.equal(merged, wanted.to(torch.bfloat16))


def test_a_model_without_such_maps_is_refused() -> None:
    with pytest.raises(SettingError, match=r"GPT2LMHeadModel has none\. Fine-tune"):
        lora.adapt(fresh("gpt2"), 4, 8.0, 0)
