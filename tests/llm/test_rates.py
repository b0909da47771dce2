"""What asking costs: formulae, golden numbers, configs, prices, and rates read back from a store."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nlrewrite.artifacts import Artifact, Provenance, Store
from nlrewrite.errors import SettingError
from nlrewrite.llm import rates
from nlrewrite.llm.rates import DEVICES, Lengths, Prices
from nlrewrite.llm.shape import LLAMA_3_1B, LLAMA_3_8B, Shape, shape
from nlrewrite.questions import TunedSpec, TuneSpec
from nlrewrite.specs import (
    AskSpec,
    FolderReader,
    HubReader,
    PromptSpec,
    RuleReader,
    ServedReader,
    TextSpec,
    TrainedReader,
)
from tests.subject.small_models import config

PUBLISHED_QUERIES = 327_680_000

LAYOUTS = {
    "naive": lambda lengths: rates.one_by_one(lengths).flop(LLAMA_3_8B),
    "published": lambda lengths: rates.published(lengths).flop(LLAMA_3_8B),
    "published, forced": lambda lengths: rates.published(lengths, 0).flop(LLAMA_3_8B),
    "blocks, explanation": lambda lengths: rates.blockwise(lengths, "explanation").flop(LLAMA_3_8B),
    "blocks, context": lambda lengths: rates.blockwise(lengths, "context").flop(LLAMA_3_8B),
    "blocks of 128": lambda lengths: rates.blockwise(lengths, "context", 128).flop(LLAMA_3_8B),
    "ten at once": lambda lengths: rates.many_at_once(LLAMA_3_8B, lengths),
    "packed, context": lambda lengths: rates.packed(lengths, "context").flop(LLAMA_3_8B),
    "packed, explanation": lambda lengths: rates.packed(lengths, "explanation").flop(LLAMA_3_8B),
}
SHORT = {  # context 35, explanation 20: TFLOP a question, hours on A40, A100, H100, questions a second on an H100
    "naive": (8.971, 10_909, 5_234, 1_651, 55),
    "published": (1.290, 1_568, 752, 237, 383),
    "published, forced": (1.242, 1_511, 725, 229, 398),
    "blocks, explanation": (0.701, 852, 409, 129, 706),
    "blocks, context": (0.544, 661, 317, 100, 910),
    "blocks of 128": (1.342, 1_632, 783, 247, 369),
    "ten at once": (0.387, 471, 226, 71, 1_277),
    "packed, context": (0.429, 522, 251, 79, 1_151),
    "packed, explanation": (0.587, 713, 342, 108, 843),
}
LONGER = {  # (context, explanation): TFLOP a question, hours on A40 and H100
    "naive": {(35, 26): (9.056, 11_013, 1_667), (147, 20): (10.575, 12_859, 1_946), (147, 40): (10.862, 13_209, 1_999)},
    "published": {(35, 26): (1.375, 1_672, 253), (147, 26): (2.980, 3_624, 548), (147, 40): (3.181, 3_868, 585)},
    "published, forced": {(35, 26): (1.328, 1_615, 244), (147, 20): (2.846, 3_461, 524)},
    "blocks, explanation": {(147, 20): (2.305, 2_803, 424), (147, 40): (2.306, 2_805, 425)},
    "blocks, context": {(35, 26): (0.629, 765, 116), (147, 26): (0.632, 769, 116), (147, 40): (0.833, 1_013, 153)},
    "blocks of 128": {(35, 26): (1.428, 1_736, 263), (147, 40): (1.634, 1_988, 301)},
    "ten at once": {(35, 26): (0.474, 576, 87), (147, 20): (0.389, 473, 72), (147, 40): (0.679, 826, 125)},
    "packed, context": {(35, 26): (0.515, 627, 95), (147, 20): (0.431, 524, 79), (147, 40): (0.718, 873, 132)},
    "packed, explanation": {
        (35, 26): (0.587, 713, 108),
        (147, 20): (2.191, 2_664, 403),
        (147, 40): (2.192, 2_666, 404),
    },
}


def hours_of(flop: float, device: str) -> int:
    return round(PUBLISHED_QUERIES * rates.hours(flop, DEVICES[device]))


def test_an_eight_billion_model_costs_what_is_known() -> None:
    assert LLAMA_3_8B.per_token == pytest.approx(13.96e9, rel=1e-3)
    assert LLAMA_3_8B.per_pair == pytest.approx(0.524e6, rel=1e-3)
    assert LLAMA_3_8B.per_answer == pytest.approx(1.05e9, rel=1e-3)
    assert LLAMA_3_8B.cache_bytes == 128 * 1024
    assert LLAMA_3_1B.per_token == pytest.approx(1.95e9, rel=3e-3)


@pytest.mark.parametrize("layout", SHORT)
def test_layouts_cost_what_is_known(layout: str) -> None:
    flop = LAYOUTS[layout](Lengths())
    second = round(1 / (rates.hours(flop, DEVICES["H100"]) * 3600))
    found = (round(flop / 1e12, 3), *(hours_of(flop, device) for device in ("A40", "A100", "H100")), second)
    assert found == SHORT[layout]
    for (context, explanation), known in LONGER[layout].items():
        flop = LAYOUTS[layout](Lengths(context=context, explanation=explanation))
        assert (round(flop / 1e12, 3), hours_of(flop, "A40"), hours_of(flop, "H100")) == known


def test_a_shorter_stub_saves_what_is_known() -> None:
    flop = rates.packed(Lengths(explanation=16), "context").flop(LLAMA_3_8B)  # as 20 with a stub 4 shorter
    assert (round(flop / 1e12, 3), hours_of(flop, "A40"), hours_of(flop, "H100")) == (0.372, 453, 69)


@pytest.mark.parametrize(("shared", "two", "three"), [(64, 0.31, 0.022), (98, 0.20, 0.015), (819, 0.024, 0.002)])
def test_few_questions_behind_a_prefix_pay_for_it(shared: int, two: float, three: float) -> None:
    layout = rates.packed(Lengths(), "context")
    own = layout.flop(LLAMA_3_8B)
    assert layout.flop(LLAMA_3_8B, shared) / own - 1 == pytest.approx(two, abs=0.005)
    assert layout.flop(LLAMA_3_8B, shared, levels=3) / own - 1 == pytest.approx(three, abs=0.001)


@given(st.integers(1, 400), st.integers(0, 4000), st.integers(0, 8), st.integers(1, 200))
def test_running_tokens_in_two_parts_costs_the_same(new: int, cached: int, decoded: int, split: int) -> None:
    first = min(split, new)
    parts = LLAMA_3_8B.flop(first, cached, answers=0) + LLAMA_3_8B.flop(new - first, cached + first, decoded)
    assert parts == pytest.approx(LLAMA_3_8B.flop(new, cached, decoded))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2", "gemma2"])
def test_a_shape_counts_the_weights_of_the_model(family: str) -> None:
    """Twice the parameters of all matrices in the layers is the arithmetic of a token."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config(family))
    layers = model.base_model.h if family == "gpt2" else model.base_model.layers
    matrices = sum(each.numel() for each in layers.parameters() if each.ndim == 2)
    assert Shape.of(config(family).to_dict()).per_token == 2 * matrices


def test_what_is_no_dense_decoder_is_refused() -> None:
    with pytest.raises(SettingError, match=r"mixture of experts.*num_local_experts=8"):
        Shape.of({**config("llama").to_dict(), "num_local_experts": 8})
    with pytest.raises(SettingError, match="no num_hidden_layers"):
        Shape.of({"hidden_size": 8, "num_attention_heads": 2})


def test_utilisation_is_a_share() -> None:
    with pytest.raises(SettingError, match=r"utilisation.*1\.5"):
        rates.hours(1e12, DEVICES["A40"], 1.5)


def test_prices_count_what_was_given_alone() -> None:
    assert Prices().of_tokens(1e6, 0, 0) is None
    prices = Prices.parse(["prompt=2", "cached=0.5", "new=8", "A40=3", "H100=9"])
    assert prices.of_tokens(1e6, 2e6, 5e5) == pytest.approx(2 + 1 + 4)
    assert Prices.parse(["prompt=2"]).of_tokens(1e6, 1e6, 1e6) == pytest.approx(6)
    assert prices.of_hours({"A40": 10, "H100": 2, "A100": 1}) == 18
    assert Prices().of_hours({"A40": 1}) is None
    for wrong, words in (
        ("prompt", "NAME=VALUE"),
        ("input=2", "NAME=VALUE"),
        ("new=-1", "price of new.*'-1'"),
        ("A40=x", "of A40.*'x'"),
    ):
        with pytest.raises(SettingError, match=words):
            Prices.parse([wrong])


def test_records_add_up_by_engine_model_and_device() -> None:
    one = rates.recorded("packed", "m", "cpu", {"queries": 10, "prompt_tokens": 100, "seconds": 2.0, "failed": {}})
    two = rates.recorded("packed", "m", "cpu", {"queries": 30, "prompt_tokens": 200, "seconds": 2.0})
    other = rates.recorded("vllm", "m", "cpu", {"queries": 10, "seconds": 1.0})
    assert one is not None and two is not None and other is not None
    first, second = rates.together([one, other, two])
    assert (first.queries, first.per_second, first.tokens_per_query) == (40, 10.0, 7.5)
    assert first.seconds_for(400) == 40
    assert second == other
    assert rates.recorded("packed", "m", "cpu", {"queries": 0, "seconds": 1.0}) is None


def test_rates_are_read_back_from_answers(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    made = Provenance(time="", seconds=1, run="", commit="", dirty=False, source="", packages={}, execution={})
    reader = TrainedReader(layers=2)

    def committed(kind: str, digest: str, spec: object, files: dict[str, object], inputs: dict) -> None:
        artifact = Artifact(kind=kind, digest=digest)
        with store.attempt(artifact) as attempt:
            for name, content in files.items():
                (attempt.folder / name).write_text(json.dumps(content))
            store.commit(attempt, version=1, spec=spec, inputs=inputs, made=made)

    committed("reader", "0" * 16, reader, {"reader.json": {}}, {})
    given = {"reader": store.manifest(Artifact(kind="reader", digest="0" * 16))}
    usage = {"queries": 5, "seconds": 2.5, "prompt_tokens": 50, "failed": {"transport": 1}}
    committed("answers", "1" * 16, AskSpec(), {"usage.json": {"engine": "packed", "usage": usage}}, given)
    committed("answers", "2" * 16, AskSpec(seed=1), {"usage.json": {"engine": "packed", "usage": usage}}, given)
    committed("answers", "3" * 16, AskSpec(seed=2), {"other.json": {}}, given)
    committed("corpus", "4" * 16, TextSpec(), {"usage.json": {"engine": "no", "usage": usage}}, {})
    taught = TunedSpec(tune=TuneSpec(steps=1), prompt=PromptSpec(), order="context", window=9)
    committed("tuned", "5" * 16, taught, {"reader.json": {}}, given)
    of_it = {"reader": store.manifest(Artifact(kind="tuned", digest="5" * 16))}
    committed("answers", "6" * 16, AskSpec(seed=3), {"usage.json": {"engine": "packed", "usage": usage}}, of_it)
    (found,) = rates.read(store)
    assert (found.engine, found.model, found.device) == ("packed", rates.named(reader), "cpu")
    assert (found.queries, found.per_second) == (15, 2.0)


def test_readers_of_other_arithmetic_have_other_names() -> None:
    revision = "0" * 40
    readers = [
        RuleReader(),
        TrainedReader(),
        TrainedReader(layers=2),
        HubReader(model="a/b", revision=revision),
        HubReader(model="a/b", revision=revision, quantisation="awq"),
    ]
    names = [rates.named(each) for each in readers]
    assert len(set(names)) == len(names)
    assert names == [rates.named(each.model_dump()) for each in readers]
    assert rates.named(TrainedReader(seed=3)) == rates.named(TrainedReader())


def test_readers_have_the_shape_of_their_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config("llama").to_json_string())
    assert shape(FolderReader(), str(tmp_path)) == Shape.of(config("llama").to_dict())
    assert shape(FolderReader(), None) is None and shape(RuleReader()) is None
    assert shape(HubReader(model="nobody/nothing", revision="0" * 40)) is None
    assert shape(ServedReader(model="meta-llama/Llama-3.1-8B-Instruct")) == LLAMA_3_8B
    trained = shape(TrainedReader(layers=2, width=64))
    assert trained is not None and (trained.layers, trained.width) == (2, 64)
