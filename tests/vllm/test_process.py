"""One engine at a time, and the process as it was."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nlrewrite.errors import SettingError
from nlrewrite.llm.engine import Outcome
from nlrewrite.llm.vllm import CPU_BLOCK, Vllm
from tests.vllm import making

pytestmark = pytest.mark.vllm


def test_one_engine_at_a_time_and_the_process_as_it_was(tmp_path: Path) -> None:
    folder = making.save(making.fresh("llama-tied"), tmp_path)
    state, threads = torch.get_rng_state(), torch.set_num_threads
    python, legacy = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first = Vllm(folder, sequences=16)
    assert torch.equal(torch.get_rng_state(), state) and torch.set_num_threads is threads
    assert random.getstate() == python and np.random.get_state()[1].tolist() == legacy  # noqa: NPY002
    with pytest.raises(SettingError, match="close"):
        Vllm(folder)
    about = first.about()
    assert about["block"] == CPU_BLOCK and about["mode"] == "generate" and about["dtype"] == "float32"
    first.close()
    first.close()
    with pytest.raises(SettingError, match="closed"):
        first.digits(making.block(5, [1]))
    second = Vllm(folder, sequences=16)
    del second  # not closed: the next one must not be torn down with it
    third = Vllm(folder, sequences=16)
    assert (third.digits(making.block(40, [3, 4])).outcome == Outcome.OK).all()
    third.close()


def test_a_model_that_is_not_its_own_is_refused_before_it_changes_a_class(tmp_path: Path) -> None:
    model = making.fresh("gpt_neox")
    with pytest.raises(SettingError, match="GPTNeoXForCausalLM"):
        Vllm(making.save(model, tmp_path))
    assert making.one_by_one(model, making.block(5, [2])).shape == (1, making.VOCABULARY)


def test_heads_that_its_attention_does_not_take_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="16 wide"):
        Vllm(making.save(making.fresh("llama-tied", num_attention_heads=4), tmp_path))
