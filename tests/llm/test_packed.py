"""The packed engine against the reference: models of the same weights, each with an engine of its own."""

from typing import Any

import numpy as np
import pytest
import torch

from nlrewrite.errors import SettingError
from nlrewrite.llm import anatomy, attention
from nlrewrite.llm.engine import Outcome, PrefixBlock, Sampling, Scores
from nlrewrite.llm.linear import Laid, prepack
from nlrewrite.llm.packed import Packed, Screen
from nlrewrite.llm.reference import Reference
from tests.llm import random_models as making

TOKENIZER = making.tokenizer()
RAGGED = [5, 17, 1, 30, 9, 9, 12, 2]
CLOSE = 1e-5


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(making.fresh(), TOKENIZER, top=True)


def packed(family: str = "llama-grouped", **given: Any) -> Packed:
    return Packed(making.fresh(family), TOKENIZER, **given)


def expected_values(scores: Scores) -> np.ndarray:
    return np.exp(scores.logp) @ np.arange(10)


def agree(found: Scores, expected: Scores) -> None:
    assert expected.logmass is not None
    np.testing.assert_allclose(found.logp, expected.logp, atol=CLOSE, rtol=0)
    np.testing.assert_array_equal(found.outcome, expected.outcome)
    if found.logmass is not None:
        np.testing.assert_allclose(found.logmass, expected.logmass, atol=CLOSE, rtol=0)
    if found.top is not None:
        np.testing.assert_array_equal(found.top, expected.top)


# -- equality ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", making.FAMILIES)
def test_every_family_says_what_the_reference_says(family):
    one, other = Reference(making.fresh(family), TOKENIZER, top=True), packed(family, tokens=48, top=True)
    for prefix, lengths in ((61, RAGGED), (1, [1]), (1, [3, 1, 7]), (40, [4])):
        block = making.block(prefix, lengths)
        expected = one.digits(block)
        agree(other.digits(block), expected)
        if lengths is RAGGED:
            assert expected_values(expected).std() > 0.4  # or the test would pass on anything
    assert making.fresh(family).config.tie_word_embeddings == (family == "llama-tied")


def test_the_oracle_of_a_dense_mask():
    """One row of prefix and suffixes under the mask that defines the packed pass."""
    block = making.block(33, RAGGED)
    model, lengths = making.fresh(), block.lengths
    suffix_T = np.repeat(np.arange(len(block)), lengths)
    off_T = np.concatenate([np.arange(length) for length in lengths])
    own_TT = (suffix_T[:, None] == suffix_T) & (off_T <= off_T[:, None])
    total = 33 + len(off_T)
    allowed = np.zeros((total, total), dtype=bool)
    allowed[:33, :33], allowed[33:, :33], allowed[33:, 33:] = np.tri(33, dtype=bool), True, own_TT
    with torch.no_grad():
        logits = model(
            torch.from_numpy(np.concatenate([block.prefix, block.suffix_tokens]).astype(np.int64))[None],
            attention_mask=torch.from_numpy(allowed)[None, None],
            position_ids=torch.from_numpy(np.concatenate([np.arange(33), 33 + off_T]))[None],
        ).logits[0, 33 + np.cumsum(lengths) - 1]
    expected = torch.log_softmax(logits[:, list(block.labels)], dim=-1).numpy()
    np.testing.assert_allclose(packed().digits(block).logp, expected, atol=CLOSE, rtol=0)


def test_how_rows_are_cut_does_not_matter_nor_in_which_order_suffixes_come(reference):
    block = making.block(20, RAGGED)
    expected = reference.digits(block)
    found = [packed(tokens=tokens).digits(block) for tokens in (16, 40, 4096)]
    for each in found:
        agree(each, expected)
    order = np.random.default_rng(0).permutation(len(block))
    turned = packed(tokens=40).digits(block.at(order))
    np.testing.assert_array_equal(turned.logp, found[1].logp[order])


def test_without_the_mass_the_labels_are_the_same(reference):
    block = making.block(20, RAGGED)
    engine = packed(mass=False)
    found = engine.digits(block)
    agree(found, reference.digits(block))
    assert found.logmass is None and found.top is None and not engine.exact_mass


def test_a_vocabulary_in_blocks_is_the_whole_vocabulary(reference, monkeypatch):
    block = making.block(20, RAGGED)
    monkeypatch.setattr("nlrewrite.llm.head.ENTRIES", 37 * 32)
    monkeypatch.setattr("nlrewrite.llm.head.ROWS", 32)
    agree(packed(top=True).digits(block), reference.digits(block))


def test_a_device_without_a_kernel_of_its_own_says_the_same(reference, monkeypatch):
    """The way of plain products and softmax, through a whole model."""
    calls: list[bool] = []

    def plain(q, k, v, scaling, *, causal):
        calls.append(causal)
        seen = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() if causal else None
        return attention._in_full(q, k, v, scaling, seen)

    monkeypatch.setattr(attention, "attention", plain)
    block = making.block(70, RAGGED)
    agree(packed(tokens=40).digits(block), reference.digits(block))
    assert set(calls) == {True, False}


def test_in_half_precision_packing_adds_no_error():
    """Against float32 with the same, rounded, weights: averaged over models, for suffixes of a prefix err alike."""
    errors: list[tuple[float, float]] = []
    for seed in range(8):
        block = making.block(30, [3, 17, 9, 1, 12, 6, 14, 8, 19, 2, 11, 5], seed=seed)
        model = making.fresh(seed=seed).to(torch.bfloat16)
        truth = expected_values(Reference(making.fresh(seed=seed).to(torch.bfloat16).float(), TOKENIZER).digits(block))
        found = [
            expected_values(engine.digits(block)) for engine in (Reference(model, TOKENIZER), Packed(model, TOKENIZER))
        ]
        errors.append((np.abs(found[0] - truth).mean(), np.abs(found[1] - truth).mean()))
        assert truth.std() > 0.4
    alone, rows = np.mean(errors, axis=0)
    assert rows <= 1.1 * alone
    assert 0.002 < alone < 0.1


def test_laid_out_weights_change_nothing_but_the_rounding(reference):
    model = making.fresh()
    assert prepack(model) == sum(isinstance(module, torch.nn.Linear) for module in model.modules())
    assert isinstance(model.lm_head, Laid)
    tied = making.fresh("llama-tied")
    prepack(tied)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    block = making.block(20, RAGGED)
    agree(Packed(model, TOKENIZER, top=True).digits(block), reference.digits(block))
    assert prepack(making.fresh().to(torch.bfloat16)) == 0
    assert prepack(making.fresh().requires_grad_(True)) == 0


# -- the prefix -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama-grouped", "gpt_neox"])
def test_a_prefix_that_begins_like_an_earlier_one_is_continued_to_the_same_bits(family):
    engine, start = packed(family), making.ids(150, seed=9)
    reference = Reference(making.fresh(family), TOKENIZER)
    blocks = [
        making.block(0, RAGGED, seed=1, start=np.concatenate([start, making.ids(8, seed=1)])),
        making.block(0, RAGGED, seed=2, start=np.concatenate([start, making.ids(21, seed=2)])),
        making.block(0, RAGGED, seed=3, start=start[:130]),
        making.block(0, RAGGED, seed=4, start=np.concatenate([start, making.ids(8, seed=1)])),
        making.block(0, RAGGED, seed=5, start=np.concatenate([start, making.ids(8, seed=1)])),
        making.block(0, RAGGED, seed=6, start=making.ids(12, seed=77)),
    ]
    run: list[int] = []
    for block in blocks:
        before = engine.usage.prompt_tokens
        found = engine.digits(block)
        run.append(engine.usage.prompt_tokens - before - sum(RAGGED))
        agree(found, reference.digits(block))
        np.testing.assert_array_equal(found.logp, packed(family).digits(block).logp)
    assert run == [158, 171 - 128, 130 - 128, 158 - 128, 0, 12]


def test_tokens_are_counted_once_each_as_run_or_as_reused():
    engine, blocks = packed(), [making.block(20, RAGGED), making.block(20, RAGGED, seed=1), making.block(20, [2])]
    for block in blocks:
        engine.digits(block)
    usage = engine.usage
    assert usage.queries == 2 * len(RAGGED) + 1
    assert usage.prompt_tokens + usage.cached_tokens == sum(len(b) * 20 + int(b.lengths.sum()) for b in blocks)
    assert usage.prompt_tokens == 40 + 2 * sum(RAGGED) + 2
    assert usage.seconds > 0 and usage.failed == {} and usage.new_tokens == 0


def test_a_model_attends_as_before_where_it_is_not_asked_through_the_engine(reference):
    model, ids = making.fresh(), torch.from_numpy(making.ids(12).astype(np.int64))[None]
    before = model(ids).logits
    engine = Packed(model, TOKENIZER)
    engine.digits(making.block(9, [2, 3]))
    assert model.config._attn_implementation == attention.NAME
    assert torch.equal(model(ids).logits, before)
    padded = model(ids, attention_mask=torch.tensor([[1] * 10 + [0] * 2])).logits[:, :10]
    torch.testing.assert_close(padded, before[:, :10], atol=1e-5, rtol=0)
    engine.close()


def test_two_engines_may_use_one_model(reference):
    model = making.fresh()
    first, second, block = Packed(model, TOKENIZER), Packed(model, TOKENIZER, mass=False), making.block(20, RAGGED)
    expected = reference.digits(block)
    agree(first.digits(block), expected)
    first.close()
    agree(second.digits(block), expected)
    model.set_attn_implementation("eager")
    agree(first.digits(block), expected)


# -- leaving suffixes out ---------------------------------------------------------------------------------------------


def products_do_not_depend_on_how_many_rows_they_have() -> bool:
    rows = making.fresh().model.embed_tokens.weight
    weight = making.fresh().model.layers[0].mlp.gate_proj.weight
    whole = torch.nn.functional.linear(rows, weight)
    return all(torch.equal(torch.nn.functional.linear(rows[:count], weight), whole[:count]) for count in (32, 64, 96))


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("as_indices", [False, True])
def test_a_pruned_suffix_changes_no_other(layer, as_indices):
    block = making.block(25, np.random.default_rng(2).integers(1, 25, 60).tolist())
    kept = np.sort(np.random.default_rng(3).permutation(60)[:17])
    seen: list[torch.Tensor] = []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        seen.append(hidden)
        chosen = torch.from_numpy(kept)
        return chosen if as_indices else torch.zeros(60, dtype=torch.bool).index_fill(0, chosen, True)

    engine = packed(tokens=100, top=True)
    whole, found = engine.digits(block), engine.digits(block, Screen(layer, keep))
    difference = np.abs(found.logp[kept] - whole.logp[kept]).max()
    assert difference <= (0.0 if products_do_not_depend_on_how_many_rows_they_have() else 1e-6)
    np.testing.assert_array_equal(found.top[kept], whole.top[kept])
    dropped = np.setdiff1d(np.arange(60), kept)
    assert (found.outcome[dropped] == Outcome.SKIPPED).all() and (found.outcome[kept] == Outcome.OK).all()
    assert np.isnan(found.logp[dropped]).all() and np.isnan(found.logmass[dropped]).all()
    assert engine.usage.failed == {"SKIPPED": 43}
    assert seen[0].shape == (60, making.WIDTH) and seen[0].dtype == torch.float32


def test_a_screen_sees_the_hidden_states_in_the_order_of_the_block():
    block = making.block(25, RAGGED)
    seen: list[torch.Tensor] = []
    packed(tokens=40).digits(block, Screen(2, lambda hidden: seen.append(hidden) or torch.arange(len(hidden))))
    model = making.fresh()
    for row in range(len(block)):
        text = np.concatenate([block.prefix, block.suffix(row)]).astype(np.int64)
        with torch.no_grad():
            hidden = model(torch.from_numpy(text)[None], output_hidden_states=True).hidden_states[2][0, -1]
        torch.testing.assert_close(seen[0][row], hidden, atol=1e-4, rtol=1e-5)


def test_a_screen_may_leave_everything_out():
    found = packed().digits(making.block(9, RAGGED), Screen(1, lambda hidden: hidden[:, 0] > torch.inf))
    assert (found.outcome == Outcome.SKIPPED).all() and np.isnan(found.logp).all()


@pytest.mark.parametrize("layer", [0, making.LAYERS])
def test_a_screen_stands_between_layers(layer):
    with pytest.raises(SettingError, match=f"layer={layer}, and the reader has {making.LAYERS}"):
        packed().digits(making.block(9, RAGGED), Screen(layer, lambda hidden: hidden[:, 0] > 0))


# -- replies ----------------------------------------------------------------------------------------------------------


def prompts(shared: int) -> list[np.ndarray]:
    return [np.concatenate([making.ids(shared), making.ids(length, seed=length)]) for length in (9, 1, 30, 4, 4, 16)]


@pytest.mark.parametrize("family", making.FAMILIES)
@pytest.mark.parametrize("shared", [0, 25])
def test_greedy_replies_are_the_references(family, shared):
    one, other = Reference(making.fresh(family), TOKENIZER), packed(family, tokens=16)
    expected = one.complete(prompts(shared), Sampling(most=10))
    assert other.complete(prompts(shared), Sampling(most=10)) == expected
    assert len({reply.text for reply in expected}) >= 5


@pytest.mark.parametrize("tokens", [16, 4096])
def test_drawn_replies_are_the_references_and_end_where_they_end(reference, tokens):
    """Replies of one batch end at different times: at a stop, at the end token, at the last position."""
    given = [*prompts(25), making.ids(making.LONGEST - 3, seed=99), making.ids(making.LONGEST, seed=98)]
    sampling = Sampling(most=24, temperature=1.5, seed=3, stop=("w11", "w12", "w13", "w14", "w15"))
    expected = Reference(making.fresh(), TOKENIZER).complete(given, sampling)
    engine = packed(tokens=tokens)
    assert engine.complete(given, sampling) == expected
    assert len({len(reply.text.split()) for reply in expected}) > 3
    assert {reply.complete for reply in expected} == {True, False}
    assert expected[-1].outcome is Outcome.REFUSED and engine.usage.failed == {"REFUSED": 1}


def test_a_shared_beginning_of_prompts_is_run_once_and_kept_for_the_next_call():
    engine = packed()
    given = prompts(25)
    total = sum(len(prompt) for prompt in given)
    for call in (1, 2):
        engine.complete(given, Sampling(most=2))
        assert engine.usage.prompt_tokens == 25 + call * (total - 6 * 25)
        assert engine.usage.prompt_tokens + engine.usage.cached_tokens == call * total
    assert engine.usage.queries == 12 and engine.usage.new_tokens == 24


def test_prompts_that_are_equal_get_equal_replies():
    found = packed().complete([making.ids(6)] * 3, Sampling(most=5, temperature=1.0))
    assert len({reply.text for reply in found}) == 1 and found[0].text


def test_no_prompts_get_no_replies():
    assert packed().complete([], Sampling()) == []


# -- what is refused --------------------------------------------------------------------------------------------------


def test_texts_that_are_too_long_are_refused_one_by_one(reference):
    block = making.block(making.LONGEST - 5, [5, 6, 2])
    engine = packed()
    agree(engine.digits(block), reference.digits(block))
    assert engine.usage.failed == {"REFUSED": 1}
    nothing = engine.digits(making.block(making.LONGEST, [1, 2]))
    assert (nothing.outcome == Outcome.REFUSED).all() and np.isnan(nothing.logp).all()


def test_a_window_shorter_than_the_text_is_refused():
    engine = Packed(making.fresh("mistral", sliding_window=32), TOKENIZER)
    engine.digits(making.block(20, [12]))
    with pytest.raises(SettingError, match=r"sliding_window=32, text=33 tokens\. Use engine reference or vllm"):
        engine.digits(making.block(20, [13, 2]))
    with pytest.raises(SettingError, match="sliding_window=32, text=34 tokens"):
        engine.complete([making.ids(24)], Sampling(most=10))


@pytest.mark.parametrize(("kind", "more"), [("dynamic", {}), ("longrope", {"original_max_position_embeddings": 40})])
def test_angles_that_change_with_the_length_are_refused_where_they_change(kind, more):
    rotation: dict[str, Any] = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 2.0, **more}
    if kind == "longrope":
        rotation |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    else:
        rotation |= {"original_max_position_embeddings": 40}
    model = making.fresh("llama-grouped", rope_parameters=rotation)
    engine = Packed(model, TOKENIZER)
    agree(
        engine.digits(making.block(20, [20, 3])),
        Reference(making.fresh("llama-grouped", rope_parameters=rotation), TOKENIZER).digits(making.block(20, [20, 3])),
    )
    with pytest.raises(SettingError, match=r"original_max_position_embeddings=40, text=41 tokens\. Use engine"):
        engine.digits(making.block(20, [21, 3]))


@pytest.mark.parametrize(("kind", "more"), [("linear", {}), ("yarn", {"original_max_position_embeddings": 64})])
def test_angles_that_are_scaled_once_and_for_all_are_no_hindrance(kind, more):
    rotation = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0, **more}
    one, other = (making.fresh("llama-grouped", rope_parameters=rotation) for _ in range(2))
    block = making.block(70, RAGGED)
    agree(Packed(other, TOKENIZER).digits(block), Reference(one, TOKENIZER).digits(block))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("attn_logit_softcapping", 50.0),
        ("final_logit_softcapping", 30.0),
        ("logit_scale", 0.5),
        ("logits_scaling", 8.0),
        ("alibi", True),
        ("attention_chunk_size", 16),
        ("attention_sink_size", 4),
        ("num_kv_shared_layers", 1),
        ("v_head_dim", 8),
        ("layer_types", ["full_attention", "linear_attention", "full_attention"]),
    ],
)
def test_a_model_that_computes_more_is_refused_by_the_name_of_the_field(field, value):
    model = making.fresh()
    setattr(model.config, field, value)
    with pytest.raises(SettingError, match=f"do not reproduce.*{field}=.*Use engine reference or vllm"):
        Packed(model, TOKENIZER)


def test_a_head_with_a_bias_is_refused():
    model = making.fresh()
    model.lm_head = torch.nn.Linear(making.WIDTH, making.VOCABULARY, bias=True).eval()
    with pytest.raises(SettingError, match=r"lm_head\.bias"):
        Packed(model, TOKENIZER)


def test_attention_sinks_are_refused():
    model = making.fresh()
    model.model.layers[1].self_attn.sinks = torch.nn.Parameter(torch.zeros(4))
    with pytest.raises(SettingError, match="sinks"):
        Packed(model, TOKENIZER)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(SettingError, match=r"training=True.*model\.eval"):
        Packed(making.fresh().train(), TOKENIZER)


def test_families_that_are_not_known_are_refused():
    from tests.subject import small_models

    for family in ("gpt2", "gemma2"):
        with pytest.raises(SettingError, match=f"llama, mistral.*model_type='{family}'.*Use engine reference or vllm"):
            Packed(small_models.fresh(family), TOKENIZER)
    odd = type("Odd", (type(making.fresh()),), {})
    model = making.fresh()
    model.__class__ = odd
    with pytest.raises(SettingError, match="class Odd"):
        Packed(model, TOKENIZER)


def test_every_known_family_is_tested():
    assert {making.config(family).model_type for family in making.FAMILIES} == set(anatomy.FAMILIES)


def test_what_is_no_block_is_refused():
    with pytest.raises(SettingError, match="number 1 is empty"):
        PrefixBlock.of([1], [[2], []], making.LABELS)


def test_it_says_what_it_is():
    about = packed().about()
    assert about["engine"] == "packed" and about["dtype"] == "float32" and "CPU" in str(about["attention"])


def test_an_answer_that_is_no_number_is_missing_and_its_neighbours_are_not():
    block = making.block(20, [3, 5, 4])
    model = making.fresh()
    lost = int(block.suffix(1)[2])
    block = PrefixBlock.of(
        np.where(block.prefix == lost, 3, block.prefix),
        [np.where(block.suffix(row) == lost, lost if row == 1 else 3, block.suffix(row)) for row in range(3)],
        block.labels,
    )
    right = Packed(model, making.tokenizer()).digits(block)
    with torch.no_grad():
        model.get_input_embeddings().weight[lost] = torch.inf
    engine = Packed(model, making.tokenizer(), top=True)
    found = engine.digits(block)
    assert found.outcome.tolist() == [Outcome.OK, Outcome.UNPARSEABLE, Outcome.OK]
    assert found.logmass is not None and found.top is not None
    assert np.isnan(found.logp[1]).all() and np.isnan(found.logmass[1]) and not found.top[1].any()
    np.testing.assert_allclose(found.logp[[0, 2]], right.logp[[0, 2]], atol=1e-5)
    assert engine.usage.failed == {"UNPARSEABLE": 1}
