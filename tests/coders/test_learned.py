from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings as drawing
from hypothesis import strategies as st
from torch import Tensor

from nlrewrite.coders import choosing, curve, ops
from nlrewrite.coders.choosing import Pairs
from nlrewrite.coders.learned import Learned
from nlrewrite.coders.losses import Loss
from nlrewrite.coders.ranks import ALONE
from nlrewrite.errors import CorruptArtifact
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site
from tests.coders.dense_coder import dense
from tests.coders.sizes import Sizes

N, D, E, L, K = 48, 10, 7, 64, 5
SAE = Site(kind="mlp-output")


def normal(*shape: int, seed: int = 0, mean: float = 0.0) -> Tensor:
    return torch.randn(*shape, generator=torch_generator(seed, "normal", *shape)) + mean


def learned(out: int = E, seed: int = 0, **settings: Any) -> Learned:
    """A coder somewhere on its way: no weight is zero, and biases matter."""
    sae = settings.get("tied_bias", False) or settings.get("init") == "tied"
    fixed: dict[str, Any] = {"width": L, "k": K, "site": SAE if sae else Site(), "skip": not sae}
    spec = CoderSpec(**fixed | settings)
    out = D if sae else out
    weights = {
        "enc": normal(L, D, seed=seed + 1) / D**0.5,
        "enc_bias": normal(L, seed=seed + 2) / 4,
        "dec": normal(L, out, seed=seed + 3) / D**0.5,
        "dec_bias": normal(out, seed=seed + 4),
    }
    if spec.skip:
        weights["skip"] = normal(out, D, seed=seed + 5) / D
    if spec.activation == "jumprelu":
        weights["threshold"] = 0.2 + 0.6 * torch.rand(L, generator=torch_generator(seed, "threshold"))
    if spec.unit_decoder:
        weights["dec"] = torch.nn.functional.normalize(weights["dec"], dim=-1)
    return Learned(spec, weights)


def batch(made: Learned, rows: int = N, seed: int = 0) -> tuple[Tensor, Tensor]:
    x_ND, out = normal(rows, D, seed=seed, mean=0.3), made.weights["dec"].shape[1]
    return x_ND, x_ND if made.spec.site.kind != "mlp" else normal(rows, out, seed=seed + 9, mean=-0.5)


def gradients(made: Learned, x_ND: Tensor, y_NE: Tensor, step: int = 0) -> tuple[Loss, dict[str, Tensor]]:
    loss = made.loss(x_ND, y_NE, step)
    loss.total.backward()
    given = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in made.weights.items()}
    for each in made.parameters():
        each.grad = None
    return loss, given


def apart(one: Tensor, other: Tensor) -> float:
    """Relative difference, in the Frobenius norm."""
    one, other = one.detach().double(), other.detach()
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


CASES: list[dict[str, Any]] = [
    {},
    {"loss": "fvu"},
    {"loss": "relative", "skip": False},
    {"k": 30},
    {"k": L},
    {"k": 1, "loss": "fvu"},
    {"tied_bias": True, "loss": "fvu"},
    {"init": "tied", "unit_decoder": True, "tied_bias": True},
    {"activation": "batchtopk"},
    {"activation": "batchtopk", "k": 40, "loss": "fvu", "tied_bias": True},
    {"activation": "relu", "penalty": 0.03},
    {"activation": "relu", "penalty": 0.03, "penalty_warm_up": 10, "loss": "relative"},
    {"activation": "jumprelu", "penalty": 0.05, "bandwidth": 0.3},
    {"activation": "jumprelu", "penalty": 0.05, "bandwidth": 2.0, "loss": "fvu", "penalty_warm_up": 7},
    {"activation": "jumprelu", "penalty": 0.05, "tied_bias": True},
]


@pytest.mark.parametrize("whole", [0.0, 2.0], ids=["dense", "sparse"])
@pytest.mark.parametrize("settings", CASES, ids=str)
def test_loss_and_gradients_are_those_written_out(
    settings: dict[str, Any], whole: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("nlrewrite.coders.choosing.DENSE", "nlrewrite.coders.ops.AT_ONCE"):
        monkeypatch.setattr(place, {"cpu": whole if "DENSE" in place else 20 * L})
    monkeypatch.setattr(ops, "LEAST_ROWS", 1)
    monkeypatch.setattr(ops, "DENSE", whole)
    made = learned(**settings)
    x_ND, y_NE = batch(made)
    loss, given = gradients(made, x_ND, y_NE, step=3)
    expected = dense(made.spec, made.weights, x_ND, y_NE, step=3)
    for name in ("total", "error", "variance", "active", "penalty"):
        assert apart(getattr(loss, name), getattr(expected, name)) < 1e-6, name
    assert set(given) == set(expected.gradients)
    for name, gradient in expected.gradients.items():
        assert gradient.norm() > 0, name
        assert apart(given[name], gradient) < 2e-6, name


@pytest.mark.parametrize("settings", [{}, {"activation": "batchtopk"}, {"activation": "jumprelu", "penalty": 0.1}])
def test_the_size_of_a_chunk_changes_nothing(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    made = learned(**settings)
    x_ND, y_NE = batch(made)
    monkeypatch.setattr(ops, "LEAST_ROWS", 1)
    found: list[tuple[Loss, dict[str, Tensor]]] = []
    for rows in (N, N // 4, 1):
        monkeypatch.setattr(ops, "AT_ONCE", {"cpu": rows * L})
        found.append(gradients(made, x_ND, y_NE))
    for loss, given in found[1:]:
        assert apart(loss.total, found[0][0].total) < 1e-6
        assert torch.equal(loss.active, found[0][0].active)
        assert all(apart(given[name], found[0][1][name]) < 1e-6 for name in given)


# -- AuxK -------------------------------------------------------------------------------------------------------------

DEAD = torch.arange(L) >= L // 2


def with_dead(**settings: Any) -> Learned:
    """The second half is dead: silent for long, and below the others on every token."""
    made = learned(dead_after=1000, **settings)
    with torch.no_grad():
        made.weights["enc_bias"][~DEAD] += 20
    made.restore(made.state() | {"since": torch.where(DEAD, 1000, 999)})
    assert torch.equal(made.dead(), DEAD)
    return made


@pytest.mark.parametrize("auxk", [3, 12, L])
@pytest.mark.parametrize(
    "settings", [{}, {"loss": "fvu"}, {"loss": "relative"}, {"activation": "batchtopk"}, {"tied_bias": True}], ids=str
)
def test_dead_latents_learn_from_the_error(settings: dict[str, Any], auxk: int) -> None:
    made = with_dead(auxk=auxk, auxk_weight=0.7, **settings)
    x_ND, y_NE = batch(made)
    expected = dense(made.spec, made.weights, x_ND, y_NE, dead=DEAD)
    loss, given = gradients(made, x_ND, y_NE)
    assert apart(loss.auxk, expected.auxk) < 1e-6
    assert apart(loss.total, expected.total) < 1e-6
    for name, gradient in expected.gradients.items():
        assert apart(given[name], gradient) < 2e-6, name
    for name in ("enc", "enc_bias", "dec"):
        assert (given[name][DEAD].abs().amax(0) > 0).all(), name


def test_auxk_leaves_the_main_reconstruction_alone() -> None:
    made, plain = with_dead(auxk=8, auxk_weight=2.0), with_dead()
    x_ND, y_NE = batch(made)
    (loss, given), (without, main) = gradients(made, x_ND, y_NE), gradients(plain, x_ND, y_NE)
    assert torch.equal(loss.error, without.error)
    assert without.auxk == 0 and loss.auxk > 0
    for name in ("dec_bias", "skip"):
        assert torch.equal(given[name], main[name]), name
    for name in ("enc", "enc_bias", "dec"):
        assert torch.equal(given[name][~DEAD], main[name][~DEAD]), name
        assert (main[name][DEAD] == 0).all()


def test_without_dead_latents_there_is_no_auxk() -> None:
    made = learned(auxk=8)
    x_ND, y_NE = batch(made)
    assert torch.equal(made.loss(x_ND, y_NE, 0).auxk, torch.zeros(()))


# -- finite differences, where other trainers are wrong ---------------------------------------------------------------


def slope(made: Learned, x_ND: Tensor, y_NE: Tensor, along: dict[str, Tensor]) -> tuple[float, float]:
    """How the loss changes along a direction: by two losses, and by the gradient. In float64."""
    made.weights = {name: each.detach().double().requires_grad_(True) for name, each in made.weights.items()}
    memory = made.state()
    _, given = gradients(made, x_ND, y_NE)
    sides: list[float] = []
    for sign in (1, -1):
        made.restore(memory)
        with torch.no_grad():
            for name, direction in along.items():
                made.weights[name] += sign * 1e-5 * direction
        sides.append(float(made.loss(x_ND, y_NE, 0).total.detach()))
    told = sum(float((given[name] * direction).sum()) for name, direction in along.items())
    return (sides[0] - sides[1]) / 2e-5, told


def test_finite_differences_of_auxk() -> None:
    made = with_dead(auxk=12, auxk_weight=0.7)
    for name in ("enc", "enc_bias", "dec"):
        seen = DEAD if name == "enc_bias" else DEAD[:, None]
        by_losses, by_gradient = slope(made, *batch(made), {name: normal(*made.weights[name].shape, seed=7) * seen})
        assert abs(by_losses) > 1e-3
        assert by_gradient == pytest.approx(by_losses, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    "settings",
    [{"activation": "batchtopk"}, {"k": 40}, {"k": L}, {"tied_bias": True, "k": 40}, {"loss": "relative"}],
    ids=["more latents than k", "some of k masked", "all masked or active", "tied", "relative"],
)
def test_finite_differences_of_a_choice(settings: dict[str, Any]) -> None:
    made = learned(**settings)
    x_ND, y_NE = batch(made)
    along = {name: normal(*each.shape, seed=8) for name, each in made.weights.items()}
    by_losses, by_gradient = slope(made, x_ND, y_NE, along)
    assert abs(by_losses) > 1e-3
    assert by_gradient == pytest.approx(by_losses, rel=1e-5, abs=1e-7)
    if settings == {"activation": "batchtopk"}:
        found = dense(made.spec, made.weights, x_ND, y_NE).values_NL > 0
        assert found.sum(1).max() > K


# -- batches out of the ordinary --------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["topk", "batchtopk", "relu", "jumprelu"])
@pytest.mark.parametrize("bias", [-100.0, 0.0], ids=["all negative", "all zero"])
def test_a_batch_in_which_nothing_is_active_teaches_the_encoder_nothing(activation: str, bias: float) -> None:
    made = learned(activation=activation)
    with torch.no_grad():
        made.weights["enc"] *= 0 if bias == 0 else 1
        made.weights["enc_bias"].fill_(bias)
    x_ND, y_NE = batch(made)
    loss, given = gradients(made, x_ND, y_NE)
    assert loss.active == 0
    for name in ("enc", "enc_bias", "dec"):
        assert (given[name] == 0).all(), name
    assert given["dec_bias"].abs().sum() > 0
    left = x_ND @ made.weights["skip"].detach().T + made.weights["dec_bias"].detach() - y_NE
    assert apart(loss.error, left.square().sum()) < 1e-6
    made.loss(x_ND, y_NE, 1)
    assert (made.coder().encode(x_ND).values == 0).all()


def test_a_token_with_nothing_to_write_has_no_scale_and_does_not_count() -> None:
    made = learned(loss="relative")
    x_ND, y_NE = batch(made)
    y_NE[3] = 0
    loss, found = gradients(made, x_ND, y_NE)
    rest = [*range(3), *range(4, N)]
    other, wanted = gradients(made, x_ND[rest], y_NE[rest])
    assert float(loss.total.detach()) == pytest.approx(float(other.total.detach()) * (N - 1) / N, rel=1e-5)
    assert all(apart(found[name], wanted[name] * (N - 1) / N) < 1e-5 for name in found)


def test_early_on_a_latent_is_silent_that_never_was_active() -> None:
    made = learned(dead_after=3 * N)
    never = torch.ones(L, dtype=torch.bool)
    for step in range(5):
        x_ND, y_NE = batch(made, seed=step)
        values_NL = dense(made.spec, made.weights, x_ND, y_NE).values_NL.detach()
        never &= (values_NL > 0).sum(0) == 0
        made.loss(x_ND, y_NE, step)
        if step < 2:
            assert torch.equal(made.silent((step + 1) * N), never) and not made.dead().any()
    assert torch.equal(made.silent(5 * N), made.dead())
    assert never.any() or not made.dead().all()


def test_leading_dimensions_count_as_tokens() -> None:
    made = learned()
    x_ND, y_NE = batch(made)
    flat, deep = made.loss(x_ND, y_NE, 0), made.loss(x_ND.view(4, 12, D), y_NE.view(4, 12, E), 0)
    assert torch.equal(flat.total, deep.total)
    with pytest.raises(AssertionError, match="do not go together"):
        made.loss(x_ND.view(4, 12, D), y_NE, 0)


def test_activations_may_come_in_bfloat16() -> None:
    made = learned()
    x_ND, y_NE = (each.bfloat16() for each in batch(made))
    loss = made.loss(x_ND, y_NE, 0)
    assert torch.equal(loss.total, made.loss(x_ND.float(), y_NE.float(), 0).total)
    assert loss.total.dtype == torch.float32


def test_a_low_precision_chooses_and_values_stay_exact() -> None:
    x_ND, y_NE = batch(learned())
    low, high = learned(k=L, precision="bfloat16"), learned(k=L)
    one, other = gradients(low, x_ND, y_NE)[1], gradients(high, x_ND, y_NE)[1]
    assert all(apart(one[name], other[name]) < 1e-6 for name in one)  # everything is chosen
    made = learned(precision="bfloat16")
    before = x_ND @ made.weights["enc"].detach().T + made.weights["enc_bias"].detach()
    exact = before.topk(K).values.clamp_min(0)
    pairs = made._choose(x_ND, made._bias(), N, ALONE)
    assert pairs is not None
    values, indices = pairs.before_P.detach().view(N, K), pairs.indices.view(N, K)
    assert torch.allclose(values, before.gather(1, indices), atol=1e-5)
    assert (values.clamp_min(0).sum(1) >= 0.97 * exact.sum(1)).all()


@pytest.mark.parametrize("tied_bias", [False, True])
def test_what_all_rows_share_takes_no_bits_from_the_choice(tied_bias: bool) -> None:
    """Of a residual stream a few entries are larger than all others, on every token alike."""
    x_ND = normal(500, D) + 100 * normal(D, seed=3)
    site = SAE if tied_bias else Site()
    spec = CoderSpec(width=256, k=8, init="uniform", precision="bfloat16", tied_bias=tied_bias, site=site, skip=False)
    made = Learned.initial(spec, x_ND, x_ND)
    pairs = made._choose(x_ND, made._bias(), len(x_ND), ALONE)
    assert pairs is not None
    centred_ND, enc_LD = x_ND.double() - x_ND.double().mean(0), made.weights["enc"].detach().double()
    wanted = (centred_ND @ enc_LD.T).topk(8).indices
    assert (pairs.indices.view(-1, 8)[:, :, None] == wanted[:, None]).any(-1).double().mean() > 0.97


@pytest.mark.parametrize("activation", ["batchtopk", "relu", "jumprelu"])
def test_every_activation_has_a_low_precision(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "DENSE", {"cpu": 2.0})
    x_ND, y_NE = batch(learned())
    one, grads = gradients(learned(activation=activation, precision="bfloat16", penalty_warm_up=2), x_ND, y_NE)
    other, exact = gradients(learned(activation=activation, penalty_warm_up=2), x_ND, y_NE)
    assert apart(one.error, other.error) < 0.02
    assert float(one.active) == pytest.approx(float(other.active), abs=0.2)
    assert all(apart(grads[name], exact[name]) < 0.2 for name in grads)
    if activation == "jumprelu":  # only looked for in bfloat16, by a wider bound than theirs: the same latents
        assert torch.equal(one.active, other.active)


@drawing(max_examples=50, deadline=None)
@drawn(
    rows=st.integers(1, 9),
    latents=st.integers(1, 12),
    most=st.integers(1, 120),
    levels=st.sampled_from([1, 3, 1000]),
    at_once=st.sampled_from([1, 24, 1000]),
    world=st.sampled_from([1, 3]),
    guess=st.sampled_from([0.0, 0.3, 0.9, 5.0]),
)
def test_a_batch_keeps_its_largest_and_of_ties_the_earlier(
    rows: int, latents: int, most: int, levels: int, at_once: int, world: int, guess: float
) -> None:
    draws = torch_generator(rows * latents, "batch", most, levels)
    p_NL = torch.randint(-levels, levels + 1, (rows, latents), generator=draws).float() / levels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "AT_ONCE", {"cpu": at_once})
        patch.setattr(ops, "LEAST_ROWS", 1)
        shares = [slice(rows * rank // world, rows * (rank + 1) // world) for rank in range(world)]
        found = together(
            world,
            lambda ranks: choosing.batch_largest(
                p_NL[shares[ranks.rank]], torch.eye(latents), torch.zeros(latents), most, torch.float32, ranks, guess
            ),
        )
    kept = torch.zeros(rows, latents)
    for share, pairs in zip(shares, found, strict=True):
        row = ops.rows_of(pairs.offsets) + share.start
        assert torch.equal(p_NL[row, pairs.indices], pairs.before_P)
        kept[row, pairs.indices] += 1
    order = p_NL.view(-1).argsort(descending=True, stable=True)[:most]
    expected = torch.zeros(rows * latents).scatter(0, order, 1.0).view(rows, latents) * (p_NL > 0)
    assert torch.equal(kept, expected)


class Threads:
    """Several processes in one: threads that meet at every sum."""

    def __init__(self, rank: int, world: int, barrier: Barrier, given: list[Any]) -> None:
        self.rank, self.world, self._barrier, self._given = rank, world, barrier, given

    def _all(self, tensor: Tensor) -> list[Tensor]:
        self._given[self.rank] = tensor.detach().clone()
        self._barrier.wait()
        found = list(self._given)
        self._barrier.wait()
        return found

    def total(self, tensor: Tensor) -> Tensor:
        return torch.stack(self._all(tensor)).sum(0)

    def gathered(self, tensor: Tensor) -> Tensor:
        return torch.cat(self._all(tensor))


def together(world: int, act: Callable[[Any], Pairs]) -> list[Pairs]:
    """What `act` gives in each of several threads that compute together."""
    if world == 1:
        return [act(ALONE)]
    barrier, given = Barrier(world), [None] * world
    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(act, [Threads(rank, world, barrier, given) for rank in range(world)]))


# -- what it remembers, and what becomes of it ------------------------------------------------------------------------


def test_latents_that_reconstruct_count_as_active() -> None:
    made = learned(k=3, dead_after=2 * N)
    x_ND, y_NE = batch(made)
    fired = (dense(made.spec, made.weights, x_ND, y_NE).values_NL > 0).any(0)
    assert 0 < fired.sum() < L
    made.loss(x_ND, y_NE, 0)
    assert not made.dead().any()
    made.loss(x_ND, y_NE, 1)
    assert torch.equal(made.dead(), ~fired)
    assert torch.equal(made.state()["since"], torch.where(fired, 0, 2 * N))
    with torch.no_grad():
        made.weights["enc_bias"][~fired] += 100
    now = (dense(made.spec, made.weights, x_ND, y_NE).values_NL > 0).any(0)
    assert (now & ~fired).any()
    made.loss(x_ND, y_NE, 2)
    assert torch.equal(made.state()["since"], torch.where(now, 0, torch.where(fired, N, 3 * N)))


@pytest.mark.parametrize("activation", ["topk", "relu", "jumprelu"])
@pytest.mark.parametrize("tied_bias", [False, True])
def test_the_coder_in_use_is_the_one_that_learned(activation: str, tied_bias: bool) -> None:
    made = learned(activation=activation, tied_bias=tied_bias)
    x_ND, y_NE = batch(made)
    loss, coder = made.loss(x_ND, y_NE, 0), made.coder()
    error = coder.decode(coder.encode(x_ND)) + coder.beside(x_ND) - y_NE
    assert apart(error.square().sum(), loss.error) < 1e-6
    assert coder.k == (K if activation == "topk" else round(float(loss.active)))
    assert coder.activation == activation
    assert not any(each.requires_grad for each in coder.parameters())


def test_a_batchtopk_becomes_the_jumprelu_of_its_running_threshold() -> None:
    made = learned(activation="batchtopk")
    x_ND, y_NE = batch(made)
    least: list[float] = []
    for seed in range(3):
        x_ND, y_NE = batch(made, seed=seed)
        values_NL = dense(made.spec, made.weights, x_ND, y_NE).values_NL.detach()
        least.append(float(values_NL[values_NL > 0].min()))
        made.loss(x_ND, y_NE, seed)
    expected = 0.9 * (0.9 * least[0] + 0.1 * least[1]) + 0.1 * least[2]
    coder = made.coder()
    assert (coder.activation, coder.k) == ("jumprelu", K)
    assert coder.threshold_L is not None
    assert torch.allclose(coder.threshold_L, torch.full((L,), expected), rtol=1e-5)
    assert abs(len(coder.encode(x_ND).values) - N * K) < N * K / 4


def test_training_goes_on_from_its_state(tmp_path: Path) -> None:
    made, other = learned(activation="batchtopk", auxk=4), learned(activation="batchtopk", auxk=4, seed=3)
    made.loss(*batch(made), 0)
    kept = made.state()
    leaves = [id(each) for each in other.parameters()]
    other.restore(kept)
    assert [id(each) for each in other.parameters()] == leaves
    assert torch.equal(other.loss(*batch(made, seed=1), 1).total, made.loss(*batch(made, seed=1), 1).total)
    for name, tensor in made.state().items():
        assert torch.equal(tensor, other.state()[name]), name
    assert not torch.equal(kept["since"], made.state()["since"])  # a copy
    del kept["since"]
    with pytest.raises(CorruptArtifact, match="the saved state is not of this coder"):
        other.restore(kept)
    with pytest.raises(CorruptArtifact, match=r"since is \(3,\)"):
        other.restore(kept | {"since": torch.zeros(3, dtype=torch.int64)})


def test_a_unit_decoder_stays_one() -> None:
    made = learned(init="tied", unit_decoder=True, tied_bias=True)
    x_ND, y_NE = batch(made)
    made.loss(x_ND, y_NE, 0).total.backward()
    dec_LE = made.weights["dec"]
    assert dec_LE.grad is not None
    before = dec_LE.grad.clone()
    made.project()
    assert torch.allclose((dec_LE.grad * dec_LE).sum(1), torch.zeros(L), atol=1e-4)
    along = (before * dec_LE.detach()).sum(1, keepdim=True) * dec_LE.detach()
    assert torch.allclose(before - dec_LE.grad, along, atol=1e-4)
    with torch.no_grad():
        dec_LE -= 0.3 * dec_LE.grad
    made.settle()
    assert torch.allclose(dec_LE.detach().norm(dim=1), torch.ones(L))


# -- thresholds that learn --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.05, 5.0], ids=["from a tenth", "from tenfold"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_threshold_finds_where_a_latent_is_worth_its_price(start: float, dtype: torch.dtype) -> None:
    """Latent m is x_m and is written as it is: silent it costs x_m^2, active the penalty, so its root is the answer."""
    spec = CoderSpec(
        width=8, k=1, skip=False, activation="jumprelu", penalty=0.25, threshold=start, bandwidth=0.2, batch=512
    )
    eye = {"enc": torch.eye(8), "enc_bias": torch.zeros(8), "dec": torch.eye(8), "dec_bias": torch.zeros(8)}
    made = Learned(spec, eye | {"threshold": torch.full((8,), start)})
    mean_L, square_L, draws = torch.zeros(8), torch.zeros(8), torch_generator(0, "planted")
    for step in range(250):
        x_ND = torch.empty(512, 8).exponential_(generator=draws).to(dtype)
        (slope_L,) = torch.autograd.grad(made.loss(x_ND, x_ND, step).total, [made.weights["threshold"]])
        with torch.no_grad():
            mean_L.lerp_(slope_L, 0.1)  # Adam
            square_L.lerp_(slope_L.square(), 0.01)
            made.weights["threshold"] -= 0.05 * min(1.0, (250 - step) / 100) * mean_L / (square_L.sqrt() + 1e-8)
        made.settle()
    found = made.weights["threshold"].detach()
    assert found.dtype == torch.float32
    assert torch.allclose(found, torch.full((8,), 0.5), atol=0.06), found


def test_values_close_to_the_threshold() -> None:
    """One latent, one token at a time: forward and all gradients by hand, threshold applied once."""
    theta, width, price = 1.0, 0.5, 0.2
    spec = CoderSpec(width=2, k=1, skip=False, activation="jumprelu", penalty=price, bandwidth=width)
    for p in (0.7, 0.76, 1.0, 1.0 + 1e-6, 1.2, 1.26, 3.0):
        weights = {"enc": torch.tensor([[1.0], [0.0]]), "enc_bias": torch.zeros(2), "dec": torch.tensor([[2.0], [0.0]])}
        made = Learned(spec, weights | {"dec_bias": torch.zeros(1), "threshold": torch.tensor([theta, 5.0])})
        loss, given = gradients(made, torch.tensor([[p]]), torch.tensor([[3.0]]))
        on, near = float(torch.tensor(p) > theta), float(abs(p - theta) < width / 2)
        slope_y = 2 * (2 * p * on - 3)
        assert loss.active == on
        assert loss.total.item() == pytest.approx((2 * p * on - 3) ** 2 + price * on, rel=1e-5)
        assert given["dec"][0].item() == pytest.approx(slope_y * p * on, rel=1e-5)
        assert given["enc"][0].item() == pytest.approx(slope_y * 2 * on * p, rel=1e-5)
        expected = -near / width * (theta * slope_y * 2 + price)
        assert given["threshold"][0].item() == pytest.approx(expected, rel=1e-5), p


def test_thresholds_do_not_become_negative() -> None:
    made = learned(activation="jumprelu")
    with torch.no_grad():
        made.weights["threshold"][0] = -1.0
    made.settle()
    assert made.weights["threshold"][0] == 0 and (made.weights["threshold"][1:] > 0).all()


# -- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"activation": "batchtopk"},
        {"activation": "relu"},
        {"activation": "jumprelu", "threshold": 3.0},
        {"precision": "bfloat16"},
        {"auxk": 64, "dead_after": 1},
    ],
    ids=str,
)
def test_neither_tokens_by_latents_nor_pairs_by_width_exists(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, width, latents, k = 512, 32, 1024, 16
    chunk = 64 * latents
    monkeypatch.setattr(ops, "AT_ONCE", {"cpu": chunk})
    spec = CoderSpec(width=latents, k=k, loss="fvu", init="uniform", **settings)
    x_ND, y_NE = normal(rows, width), normal(rows, width, seed=1)
    made = Learned.initial(spec, x_ND, y_NE)
    with Sizes() as sizes:
        made.loss(x_ND, y_NE, 0).total.backward()
    assert max(rows * width, width * latents) < chunk <= sizes.most
    assert sizes.most <= chunk
    assert min(rows * latents, rows * k * width) > 2 * chunk


def test_pairs_of_a_batch_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of the latents active is few enough for pairs, and in a large batch they take more room than a chunk."""
    rows, width, latents = 2048, 32, 1024
    chunk = 64 * latents
    monkeypatch.setattr(ops, "AT_ONCE", {"cpu": chunk})
    monkeypatch.setattr(choosing, "PAIRS", {"cpu": chunk})
    x_ND, y_NE = normal(rows, width), normal(rows, width, seed=1)
    spec = CoderSpec(width=latents, k=8, activation="jumprelu", threshold=1.3, bandwidth=0.01)
    made = Learned.initial(spec, x_ND, y_NE)
    with Sizes() as sizes:
        loss = made.loss(x_ND, y_NE, 0)
        loss.total.backward()
    assert chunk < rows * float(loss.active) < ops.DENSE * rows * latents
    assert sizes.most <= chunk


def test_a_coder_active_all_over_is_measured_a_chunk_of_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, width, latents = 1024, 16, 512
    chunk = 64 * latents
    monkeypatch.setattr(ops, "AT_ONCE", {"cpu": chunk})
    monkeypatch.setattr(ops, "DENSE_ENTRIES", chunk)
    x_ND, y_NE = normal(rows, width), normal(rows, width, seed=1)
    spec = CoderSpec(width=latents, k=8, init="uniform", activation="relu")
    coder = Learned.initial(spec, x_ND, y_NE).coder()
    with Sizes() as sizes:
        unexplained, fired_L = curve.fvu(coder, x_ND, y_NE), curve.fired(coder, x_ND)
    assert unexplained == pytest.approx(1, rel=1e-4)
    assert torch.equal(fired_L, (x_ND @ coder.enc_LD.T + coder.enc_bias_L > 0).sum(0))
    assert sizes.most <= chunk < rows * latents / 4


# -- where it starts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["constant", "uniform", "tied"])
@pytest.mark.parametrize("tied_bias", [False, True])
def test_every_start_is_centred_on_the_data(init: str, tied_bias: bool) -> None:
    sae = tied_bias or init == "tied"
    spec = CoderSpec(width=512, k=4, init=init, tied_bias=tied_bias, site=SAE if sae else Site(), skip=not sae)
    x_ND = normal(300, D, mean=2.0)
    y_NE = x_ND if sae else normal(300, E, seed=1, mean=-1.0)
    made = Learned.initial(spec, x_ND, y_NE)
    coder = made.coder()
    at_mean = x_ND.mean(0) @ coder.enc_LD.T + coder.enc_bias_L
    assert torch.allclose(at_mean, torch.zeros(512), atol=1e-5)
    assert torch.allclose(coder.dec_bias_E, y_NE.mean(0))
    if init == "constant":
        assert torch.allclose(coder.enc_LD.norm(dim=1), 1 / x_ND.std(0).mean())
    else:
        assert coder.enc_LD.abs().max() <= D**-0.5
        assert float(coder.enc_LD.std()) == pytest.approx((3 * D) ** -0.5, rel=0.05)
    if init == "tied":
        assert torch.allclose(coder.dec_LE, coder.enc_LD / coder.enc_LD.norm(dim=1, keepdim=True))
    else:
        assert (coder.dec_LE == 0).all()
    if not sae:
        assert coder.skip_ED is not None and (coder.skip_ED == 0).all() and coder.skip_ED.shape == (E, D)
        assert made.loss(x_ND, y_NE, 0).error == pytest.approx(float(made.loss(x_ND, y_NE, 0).variance), rel=1e-5)
    again = Learned.initial(spec, x_ND, y_NE)
    assert all(torch.equal(one, other) for one, other in zip(made.parameters(), again.parameters(), strict=True))
    other = Learned.initial(spec.model_copy(update={"seed": 1}), x_ND, y_NE)
    assert not torch.equal(other.weights["enc"], made.weights["enc"])
