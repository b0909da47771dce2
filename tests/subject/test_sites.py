import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from nlrewrite.errors import SettingError
from nlrewrite.specs import Site
from nlrewrite.subject import sites
from tests.subject import small_models

MODELS = ("gpt_neox", "gpt_neox-sequential", "gpt2", "llama", "gemma2")
KINDS = ("mlp", "mlp-output", "residual")
EVERY_SITE = list(itertools.product(MODELS, KINDS, range(small_models.LAYERS)))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {name: small_models.fresh(name) for name in MODELS}


def halved(x: Tensor, y: Tensor) -> Tensor:
    return 0.5 * y + 0.1 * x.tanh()


# -- finding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "path"),
    [
        ("gpt_neox", "mlp", "gpt_neox.layers.2.mlp"),
        ("gpt2", "mlp-output", "transformer.h.2.mlp"),
        ("llama", "mlp", "model.layers.2.mlp"),
        ("gemma2", "residual", "model.layers.2"),
    ],
)
def test_a_site_is_named_by_its_module_path(models, name, kind, path):
    assert sites.locate(models[name], Site(kind=kind, layer=2)).name == path


def test_a_layer_out_of_range_is_refused_with_the_range(models):
    with pytest.raises(SettingError, match=r"layers 0 to 2: coder\.site\.layer=3"):
        sites.locate(models["llama"], Site(layer=3))


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(SettingError, match=r"gpt_neox, gpt2, llama, gemma2: this subject's model_type is 'bloom'"):
        sites.family("bloom")


def test_a_window_longer_than_the_model_reads_is_refused(models):
    with pytest.raises(SettingError, match=r"at most 48 tokens: a window has 49"):
        sites.logits(models["gpt2"], small_models.ids(tokens=49))


@pytest.mark.parametrize(("name", "kind", "layer"), EVERY_SITE)
def test_dims_are_the_widths_of_what_passes(models, name, kind, layer):
    located = sites.locate(models[name], Site(kind=kind, layer=layer))
    record = sites.activations_upto(models[name], located, small_models.ids())
    assert sites.dims(models[name], located) == (record.x.shape[-1], record.y.shape[-1])
    assert record.x.shape[:2] == record.y.shape[:2] == (3, 12)


# -- recording --------------------------------------------------------------------------------------------------------


def mlp_by_hand(name: str, mlp: nn.Module, x: Tensor) -> Tensor:
    weight = dict(mlp.named_parameters())
    if name.startswith("gpt_neox"):
        inner = nn.functional.gelu(x @ weight["dense_h_to_4h.weight"].T + weight["dense_h_to_4h.bias"])
        return inner @ weight["dense_4h_to_h.weight"].T + weight["dense_4h_to_h.bias"]
    if name == "gpt2":
        inner = nn.functional.gelu(x @ weight["c_fc.weight"] + weight["c_fc.bias"], approximate="tanh")
        return inner @ weight["c_proj.weight"] + weight["c_proj.bias"]
    gate = x @ weight["gate_proj.weight"].T
    gate = nn.functional.silu(gate) if name == "llama" else nn.functional.gelu(gate, approximate="tanh")
    return (gate * (x @ weight["up_proj.weight"].T)) @ weight["down_proj.weight"].T


def mlp_input_by_hand(name: str, layer: nn.Module, before: Tensor, after: Tensor, y: Tensor) -> Tensor:
    """What the MLP reads, from the residual stream before and after its layer and the MLP's output."""
    match name:
        case "gpt_neox":
            return layer.post_attention_layernorm(before)
        case "gpt2":
            return layer.ln_2(after - y)
        case "gemma2":
            return layer.pre_feedforward_layernorm(after - layer.post_feedforward_layernorm(y))
        case _:
            return layer.post_attention_layernorm(after - y)


@pytest.mark.parametrize(("name", "layer"), list(itertools.product(MODELS, range(small_models.LAYERS))))
@torch.no_grad()
def test_what_is_recorded_at_an_mlp_is_its_input_and_its_output(models, name, layer):
    model, ids = models[name], small_models.ids()
    located = sites.locate(model, Site(kind="mlp", layer=layer))
    with sites.recorded(model, located) as record:
        sites.logits(model, ids)
    module = model.get_submodule(located.layer_name)
    after = sites.activations_upto(model, sites.locate(model, Site(kind="residual", layer=layer)), ids).y
    before = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[layer]
    torch.testing.assert_close(record.y, mlp_by_hand(name, module.mlp, record.x), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(record.x, mlp_input_by_hand(name, module, before, after, record.y), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("name", "layer"), list(itertools.product(MODELS, range(small_models.LAYERS - 1))))
@torch.no_grad()
def test_what_is_recorded_at_a_residual_is_what_the_next_layer_reads(models, name, layer):
    model, ids = models[name], small_models.ids()
    record = sites.activations_upto(model, sites.locate(model, Site(kind="residual", layer=layer)), ids)
    hidden = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    assert torch.equal(record.y, hidden[layer + 1])
    assert record.x is record.y


@pytest.mark.parametrize(("name", "kind", "layer"), EVERY_SITE)
def test_stopping_at_the_site_gives_what_a_whole_pass_gives(models, name, kind, layer):
    model, ids = models[name], small_models.ids()
    located = sites.locate(model, Site(kind=kind, layer=layer))
    with sites.recorded(model, located) as record:
        sites.logits(model, ids)
    stopped = sites.activations_upto(model, located, ids)
    assert torch.equal(stopped.x, record.x)
    assert torch.equal(stopped.y, record.y)
    if kind != "mlp":
        assert stopped.x is stopped.y


def test_stopping_at_the_site_runs_nothing_above_it(models):
    model = models["llama"]
    ran: list[int] = []
    handles = [
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(model.get_submodule("model.layers"))
    ]
    sites.activations_upto(model, sites.locate(model, Site(layer=1)), small_models.ids())
    for handle in handles:
        handle.remove()
    assert ran == [0, 1]


@pytest.mark.parametrize(
    ("name", "kind", "runs"),
    [
        ("gpt_neox", "mlp", 1),
        ("gpt_neox", "mlp-output", 1),
        ("gpt_neox", "residual", 2),
        ("gpt_neox-sequential", "mlp", 2),
    ],
)
def test_stopping_at_an_mlp_leaves_out_the_attention_beside_it(models, name, kind, runs):
    model = models[name]
    count = [0]

    def counted(*_: object) -> None:
        count[0] += 1

    handles = [layer.attention.query_key_value.register_forward_hook(counted) for layer in model.gpt_neox.layers]
    sites.activations_upto(model, sites.locate(model, Site(kind=kind, layer=1)), small_models.ids())
    for handle in handles:
        handle.remove()
    assert count == [runs]


def test_a_closed_record_keeps_what_it_has(models):
    model = models["gpt_neox"]
    with sites.recorded(model, sites.locate(model, Site(layer=1))) as record:
        sites.logits(model, small_models.ids(tokens=12))
    sites.logits(model, small_models.ids(tokens=7))
    assert record.x.shape[1] == record.y.shape[1] == 12


def test_recording_works_where_gradients_are_on(models):
    model = models["gpt_neox"]
    with sites.recorded(model, sites.locate(model, Site(layer=1))) as record:
        model(input_ids=small_models.ids(), use_cache=False)
    assert not record.x.requires_grad
    assert not record.y.requires_grad


# -- patching ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "kind", "layer"), EVERY_SITE)
def test_patching_y_by_itself_changes_no_bit(models, name, kind, layer):
    model, ids = models[name], small_models.ids()
    located = sites.locate(model, Site(kind=kind, layer=layer))
    original = sites.logits(model, ids)
    with sites.patched(model, located, lambda x, y: y):
        assert torch.equal(sites.logits(model, ids), original)
    tail = sites.Tail(model, located, ids)
    assert torch.equal(tail.original, original)
    assert torch.equal(tail.logits(lambda x, y: y), original)
    assert torch.equal(sites.logits(model, ids), original), "something was left behind in the model"


@pytest.mark.parametrize(("name", "kind", "layer"), EVERY_SITE)
def test_a_tail_gives_the_logits_of_the_whole_patched_pass(models, name, kind, layer):
    model, ids = models[name], small_models.ids()
    located = sites.locate(model, Site(kind=kind, layer=layer))
    tail = sites.Tail(model, located, ids)
    for replace in (halved, lambda x, y: torch.zeros_like(y)):
        with sites.patched(model, located, replace):
            whole = sites.logits(model, ids)
        assert not torch.allclose(whole, tail.original, atol=1e-3)
        assert torch.equal(tail.logits(replace), whole)


@pytest.mark.parametrize(("name", "kind", "layer"), EVERY_SITE)
def test_a_patch_reaches_its_position_and_later_ones_only(models, name, kind, layer):
    model, ids, position = models[name], small_models.ids(), 5
    located = sites.locate(model, Site(kind=kind, layer=layer))
    tail = sites.Tail(model, located, ids)

    def at_position(x: Tensor, y: Tensor) -> Tensor:
        changed = y.clone()
        changed[:, position] = -y[:, position]
        return changed

    changed_BT = (tail.logits(at_position) != tail.original).any(-1)
    assert not changed_BT[:, :position].any()
    assert changed_BT[:, position].all()
    above = layer < small_models.LAYERS - 1
    assert changed_BT[:, position + 1].all() == above, "attention above the site, and only it, carries a patch on"


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_right_changes_nothing_before_it(models, name):
    model, ids = models[name], small_models.ids()
    located = sites.locate(model, Site(layer=1))
    padded = torch.cat([ids, torch.zeros(3, 6, dtype=torch.long)], 1)
    short, long = sites.Tail(model, located, ids), sites.Tail(model, located, padded)
    torch.testing.assert_close(long.logits(halved)[:, :12], short.logits(halved), atol=1e-5, rtol=1e-5)


def test_a_tail_runs_neither_the_layers_below_nor_the_site(models):
    model = models["gemma2"]
    located = sites.locate(model, Site(layer=2))
    tail = sites.Tail(model, located, small_models.ids())
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "down_proj"))
    ]
    tail.logits(halved)
    assert ran == []
    sites.logits(model, small_models.ids())
    assert len(ran) == 6
    for handle in handles:
        handle.remove()


def test_a_patch_of_another_shape_is_a_defect(models):
    model = models["gpt2"]
    tail = sites.Tail(model, sites.locate(model, Site(layer=1)), small_models.ids())
    with pytest.raises(AssertionError, match="the site's shape"):
        tail.logits(lambda x, y: y[:, :1])


def test_half_precision_is_recorded_in_full_and_patched_back_exactly():
    model, ids = small_models.fresh("gpt_neox").to(torch.bfloat16), small_models.ids()
    located = sites.locate(model, Site(layer=1))
    tail = sites.Tail(model, located, ids)
    assert tail.x.dtype == tail.y.dtype == tail.original.dtype == torch.float32
    assert torch.equal(tail.logits(lambda x, y: y), tail.original)


def test_a_failing_patch_leaves_the_model_whole(models):
    model, ids = models["llama"], small_models.ids()
    original = sites.logits(model, ids)
    located = sites.locate(model, Site(layer=1))

    def fails(x: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), sites.patched(model, located, fails):
        sites.logits(model, ids)
    assert torch.equal(sites.logits(model, ids), original)


# -- several sites ----------------------------------------------------------------------------------------------------


def everywhere(model: nn.Module, kinds: tuple[str, ...] = ("mlp", "residual")) -> list[sites.Located]:
    return [sites.locate(model, Site(kind=kind, layer=layer)) for kind in kinds for layer in range(small_models.LAYERS)]


def shifted(x: Tensor, y: Tensor) -> Tensor:
    return 0.8 * y + 0.05 * x


@pytest.mark.parametrize("name", MODELS)
def test_all_sites_replaced_by_themselves_change_no_bit(models, name):
    model, ids = models[name], small_models.ids()
    original, located = sites.logits(model, ids), everywhere(models[name])
    patches = [(each, lambda x, y: y) for each in located]
    with sites.patched_all(model, patches):
        assert torch.equal(sites.logits(model, ids), original)
    stem = sites.Stem(model, located, ids)
    assert torch.equal(stem.original, original)
    assert torch.equal(stem.logits(patches), original)
    assert torch.equal(stem.logits([]), original)
    assert torch.equal(sites.logits(model, ids), original), "something was left behind in the model"


@pytest.mark.parametrize("name", MODELS)
def test_a_later_site_is_given_what_the_patches_below_have_made_of_it(models, name):
    model, ids = models[name], small_models.ids()
    low, high = (sites.locate(model, Site(layer=layer)) for layer in (0, 2))
    seen: list[tuple[Tensor, Tensor]] = []

    def spy(x: Tensor, y: Tensor) -> Tensor:
        seen.append((x, y))
        return halved(x, y)

    with sites.patched(model, low, shifted):
        wanted = sites.activations_upto(model, high, ids)
    clean = sites.activations_upto(model, high, ids)
    stem = sites.Stem(model, [low, high], ids)
    with sites.patched_all(model, [(low, shifted), (high, spy)]):
        whole = sites.logits(model, ids)
    assert torch.equal(stem.logits([(low, shifted), (high, spy)]), whole)
    for x, y in seen:
        assert torch.equal(x, wanted.x)
        assert torch.equal(y, wanted.y)
        assert not torch.allclose(x, clean.x, atol=1e-3)
    with sites.patched(model, low, shifted), sites.patched(model, high, halved):
        assert torch.equal(sites.logits(model, ids), whole)


@pytest.mark.parametrize("name", MODELS)
def test_the_order_of_patches_does_not_matter_nor_which_are_kept_at(models, name):
    model, ids = models[name], small_models.ids()
    located = everywhere(model)
    patches = [(each, halved if at % 2 else shifted) for at, each in enumerate(located)]
    with sites.patched_all(model, patches):
        whole = sites.logits(model, ids)
    stem = sites.Stem(model, located, ids)
    assert not torch.allclose(whole, stem.original, atol=1e-3)
    for some in (patches, patches[::-1], [*patches[3:], *patches[:3]]):
        with sites.patched_all(model, some):
            assert torch.equal(sites.logits(model, ids), whole)
        assert torch.equal(stem.logits(some), whole)
    for layer in range(small_models.LAYERS):  # the MLP of a layer and the stream that leaves it, and no others
        two = [patch for patch in patches if patch[0].site.layer == layer]
        with sites.patched_all(model, two):
            whole = sites.logits(model, ids)
        assert torch.equal(stem.logits(two[::-1]), whole)


def test_one_stem_gives_what_each_sites_own_tail_gives(models):
    model, ids = models["gemma2"], small_models.ids()
    located = everywhere(model)
    stem = sites.Stem(model, located, ids)
    for each in located:
        assert torch.equal(stem.logits([(each, halved)]), sites.Tail(model, each, ids).logits(halved))


def test_a_stem_runs_nothing_below_the_lowest_patch(models):
    model = models["llama"]
    stem = sites.Stem(model, everywhere(model), small_models.ids())
    ran: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, module in model.named_modules()
        if name.endswith(("q_proj", "down_proj"))
    ]
    stem.logits([(sites.locate(model, Site(layer=layer)), halved) for layer in (2, 1)])
    for handle in handles:
        handle.remove()
    assert [name.split(".")[2] for name in ran] == ["2", "2"]


def test_one_tensor_cannot_be_replaced_twice(models):
    model = models["gpt2"]
    both = [sites.locate(model, Site(kind=kind, layer=1)) for kind in ("mlp", "mlp-output")]
    with (
        pytest.raises(SettingError, match=r"transformer\.h\.1\.mlp is written by two sites \(mlp and mlp-output"),
        sites.patched_all(model, [(each, halved) for each in both]),
    ):
        pass
    with pytest.raises(SettingError, match="can be replaced once"):
        sites.Stem(model, both, small_models.ids())
