import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from nlrewrite.artifacts import Folder
from nlrewrite.coders import activity, curve, finish, fitting, form, order, record, train
from nlrewrite.coders.activity import Activity
from nlrewrite.coders.ranks import Alone
from nlrewrite.coders.train import Learner
from nlrewrite.coding import SplitTokens, TokenRows
from nlrewrite.errors import SettingError
from nlrewrite.execution import Execution
from nlrewrite.progress import Advance, Progress
from nlrewrite.seeds import torch_generator
from nlrewrite.specs import CoderSpec, Site
from nlrewrite.steps import Job, Running
from nlrewrite.subject import sites
from nlrewrite.text.rows import rows
from tests.coders import small_training
from tests.coders.small_training import SPEC, build, made, spec, together, weights
from tests.subject import small_models

SAE = {"site": {"kind": "residual", "layer": 0}, "skip": False}
ACTIVATIONS = {
    "topk": {"auxk": 4, "loss": "fvu"},
    "batchtopk": {"auxk": 4, "loss": "relative", "optimizer": "signum", "learning_rate": 0.01},
    "jumprelu": {"penalty": 0.01, "penalty_warm_up": 3},
    "relu": {**SAE, "penalty": 0.01, "init": "tied", "unit_decoder": True, "tied_bias": True},
}
"""Something of everything that has a state, each by another activation."""


def variant(name: str, **changed: object) -> CoderSpec:
    return spec(activation=name, **{**ACTIVATIONS[name], **changed})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Folder]:
    return small_training.inputs(tmp_path_factory.mktemp("store"))


@pytest.fixture(autouse=True)
def small_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "OPENING_TOKENS", 256)
    monkeypatch.setattr(train, "POINT_EVERY", 5)
    monkeypatch.setattr(order, "HELD_OUT_TOKENS", 256)
    monkeypatch.setattr(finish, "LIVE_TOKENS", 512)


def test_training_explains_more_and_is_repeatable(inputs, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    summary = build(inputs, tmp_path / "one")
    points = summary["curve"]
    assert [point["step"] for point in points] == [*range(0, 60, 5), 59]
    assert [point["tokens"] for point in points] == [(point["step"] + 1) * 64 for point in points]
    assert points[0]["fvu"] == pytest.approx(1, abs=0.05)
    assert points[-1]["fvu"] == summary["fvu"] < 0.75
    assert all(0 < point["l0"] <= 4 for point in points)
    assert points[0]["learning_rate"] == pytest.approx(SPEC.rate / 5)
    assert summary["tokens_seen"] == 60 * 64
    assert summary["site"] == "gpt_neox.layers.1.mlp"
    assert 0 < summary["live_share"] <= 1
    build(inputs, tmp_path / "two")
    assert made(tmp_path / "one") == made(tmp_path / "two")
    assert torch.equal(state, torch.random.get_rng_state())
    assert build(inputs, tmp_path / "three", spec(seed=1))["fvu"] != summary["fvu"]


def test_the_trained_coder_is_what_was_measured(inputs, tmp_path: Path) -> None:
    summary = build(inputs, tmp_path, spec(width=40))
    coder = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    assert (coder.latents, coder.k) == (40, 4)
    active = activities(inputs, [Site(layer=1)])
    x_ND, y_NE = active.of(active.held_out())[sites.locate(active.model, Site(layer=1))]
    assert curve.fvu(coder, x_ND, y_NE) == summary["fvu"]
    said = record.read(tmp_path)
    assert (said.kind, said.source, said.steps, said.tokens) == ("skip-transcoder", "trained", 60, 60 * 64)
    assert (said.width, said.k, said.site) == (40, 4, Site(layer=1))
    fit = fitting.measured(
        coder, active.model, sites.locate(active.model, Site(layer=1)), torch.from_numpy(active.held_out()), 8192
    )
    assert (said.fvu, said.l0) == pytest.approx((fit.fvu, fit.l0), rel=1e-5)  # as whoever loads it elsewhere finds it
    assert said.measured_on == fit.tokens


@pytest.mark.parametrize("changed", [{}, {"optimizer": "signum", "learning_rate": 0.005}, {"precision": "bfloat16"}])
def test_a_batchtopk_keeps_its_k_in_use_after_a_short_training(inputs, tmp_path: Path, changed: dict) -> None:
    build(inputs, tmp_path, spec(activation="batchtopk", batch=256, mix=1024, k=6, **changed))
    assert record.read(tmp_path).l0 == pytest.approx(6, rel=0.15)


def test_live_latents_are_counted_on_tokens_behind_those_of_training(
    inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = spec(batch=2, mix=48, steps=30)  # into the second block of 48
    passes: list[int] = []
    recorded = activity.recorded

    def counted(model, located, ids_BT):
        passes.append(ids_BT.numel())
        return recorded(model, located, ids_BT)

    monkeypatch.setattr(activity, "recorded", counted)
    summary = build(inputs, tmp_path, of)
    assert passes[-1] == finish.LIVE_TOKENS  # in one pass, however small a batch of training
    coder = form.load(tmp_path / form.WEIGHTS, tmp_path / form.CONFIG)
    active = activities(inputs, [Site(layer=1)], of)
    windows = np.concatenate([active.order.windows(block) for block in range(2, 13)])[:32]
    x_ND, _ = active.windows(windows)[sites.locate(active.model, Site(layer=1))]
    assert summary["live_share"] == float((curve.fired(coder, x_ND) > 0).double().mean())


def test_a_short_training_has_a_curve_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "POINT_EVERY", 50)
    for steps, every in ((1, 12), (60, 12), (480, 12), (1000, 25), (1999, 49), (2000, 50), (1 << 20, 50)):
        assert train.point_every(spec(steps=steps)) == every


def test_a_planted_dictionary_is_recovered(monkeypatch: pytest.MonkeyPatch, inputs, tmp_path: Path) -> None:
    """Rows that are sums of a few of 16 directions: a coder of 48 latents explains nearly all of them."""
    draws = torch_generator(0, "dictionary")
    directions = torch.nn.functional.normalize(torch.randn(16, 32, generator=draws), dim=1)
    calls = iter(range(1 << 20))

    def planted(self: Activity, ids_BT: np.ndarray) -> dict:
        draws, count = torch_generator(1, next(calls)), ids_BT.size
        chosen = torch.rand(count, 16, generator=draws).argsort(1)[:, :3]
        codes = torch.zeros(count, 16).scatter(1, chosen, 1 + torch.rand(count, 3, generator=draws))
        return dict.fromkeys(self._located, (codes @ directions, codes @ directions))

    monkeypatch.setattr(Activity, "of", planted)
    summary = build(inputs, tmp_path, spec(skip=False, steps=300, batch=256, mix=1024, warm_up=20))
    assert summary["fvu"] < 0.15


def test_a_training_that_comes_apart_says_so(inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = Activity.of

    def huge(self: Activity, ids_BT: np.ndarray) -> dict:
        return {located: (x_ND * 1e30, y_NE * 1e30) for located, (x_ND, y_NE) in of(self, ids_BT).items()}

    monkeypatch.setattr(Activity, "of", huge)
    with pytest.raises(SettingError, match=r"came apart: at step 0 .* of 0\.002\. Lower --set coder\.learning_rate"):
        build(inputs, tmp_path)


# -- going on after a kill --------------------------------------------------------------------------------------------


class Stopped(Exception):
    pass


class StoppingAt(Progress):
    """Breaks off behind so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    @contextmanager
    def stage(self, label: str, total: int) -> Iterator[Advance]:
        def advance(amount: int = 1, note: str = "") -> None:
            if amount == 1:
                self.left -= 1
                if self.left == 0:
                    raise Stopped

        yield advance


def broken_off(given: dict[str, Folder], jobs: list[Job], steps: int, **execution: object) -> None:
    for job in jobs:
        job.out.mkdir(exist_ok=True, parents=True)
    with pytest.raises(Stopped):
        train.build_together(jobs, given, Running(Execution(**execution), StoppingAt(steps)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("other", [{}, {"optimizer": "signum"}])
def test_a_run_that_goes_on_is_the_unbroken_run_at_every_step(inputs, tmp_path: Path, name: str, other: dict) -> None:
    of = variant(name, steps=9, dead_after=100, mix=100, **other)
    build(inputs, tmp_path / "straight", of)
    build(inputs, tmp_path / "saving", of, small_training.work(tmp_path, "saving"), save_seconds=1e-9)
    assert made(tmp_path / "saving") == made(tmp_path / "straight")
    broken = small_training.work(tmp_path, "broken")
    for _ in range(9):  # a step at a time, each in a run of its own
        broken_off(inputs, [Job(of, tmp_path / "broken", broken)], 1, save_seconds=1e-9)
    assert not (tmp_path / "broken" / form.WEIGHTS).exists()
    build(inputs, tmp_path / "broken", of, broken)
    assert made(tmp_path / "broken") == made(tmp_path / "straight")


def test_a_run_saves_as_often_as_it_is_told(inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    save = Learner.save
    monkeypatch.setattr(Learner, "save", lambda self: (saved.append(self.step), save(self)))
    build(inputs, tmp_path / "often", spec(steps=6), small_training.work(tmp_path), save_seconds=1e-9)
    assert saved == [1, 2, 3, 4, 5, 6]
    saved.clear()
    build(inputs, tmp_path / "once", spec(steps=6), small_training.work(tmp_path, "other"), save_seconds=3600)
    assert saved == [6]


def test_auxk_that_can_never_act_is_said(inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build(inputs, tmp_path / "acts", spec(steps=2, auxk=4, dead_after=64))
    assert "AuxK" not in caplog.text
    build(inputs, tmp_path / "never", spec(steps=2, auxk=4, dead_after=65))
    assert "AuxK never acts: latents are dead after 65 tokens, and there are 64 before the last step" in caplog.text


# -- several by one pass ----------------------------------------------------------------------------------------------


def several() -> dict[str, CoderSpec]:
    common = {"order_seed": 0, "steps": 12}
    return {
        "k": spec(**common, k=2),
        "seed": spec(**common, seed=3),
        "layer": spec(**common, site={"layer": 0}),
        "sae": spec(**common, **SAE, width=20),
        "signum": spec(**common, optimizer="signum"),
        "relu": variant("relu", **common),
        "batchtopk": variant("batchtopk", **common),
    }


def test_each_of_several_is_what_training_it_alone_gives_from_one_pass(
    inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = several()
    for name, of in specs.items():
        build(inputs, tmp_path / name / "alone", of)
    passes: list[int] = []
    recorded = activity.recorded

    def counted(model, located, ids_BT):
        passes.append(len(located))
        return recorded(model, located, ids_BT)

    monkeypatch.setattr(activity, "recorded", counted)
    build(inputs, tmp_path / "counted", specs["k"])
    alone = len(passes)
    together(inputs, [Job(of, tmp_path / name / "together") for name, of in specs.items()])
    assert passes[alone:] == [3] * alone  # the sites of all, in as many passes as one coder takes
    for name in specs:
        assert made(tmp_path / name / "together") == made(tmp_path / name / "alone"), name


def test_of_several_each_goes_on_from_its_own_step(inputs, tmp_path: Path) -> None:
    specs = {name: of for name, of in several().items() if name in ("k", "sae", "relu")}
    for name, of in specs.items():
        build(inputs, tmp_path / name / "alone", of)
    jobs = [Job(of, tmp_path / name / "out", small_training.work(tmp_path, name)) for name, of in specs.items()]
    broken_off(inputs, jobs[:1], 7, save_seconds=1e-9)
    broken_off(inputs, jobs[:2], 3, save_seconds=1e-9)
    together(inputs, jobs)
    for name in specs:
        assert made(tmp_path / name / "out") == made(tmp_path / name / "alone"), name


def test_coders_that_read_other_data_are_trained_one_after_another(inputs, tmp_path: Path) -> None:
    specs = [spec(steps=4, seed=seed, width=8) for seed in (0, 1)]
    assert len({train.shared(of) for of in specs}) == 2
    assert train.shared(spec(seed=1, order_seed=0)) == train.shared(spec(seed=0))
    together(inputs, [Job(of, tmp_path / f"{of.seed}") for of in specs])
    build(inputs, tmp_path / "alone", specs[1])
    assert made(tmp_path / "1") == made(tmp_path / "alone")


# -- activations ------------------------------------------------------------------------------------------------------


def activities(given: dict[str, Folder], at: list[Site], of: CoderSpec = SPEC, batch_tokens: int = 8192) -> Activity:
    execution = Execution()
    model = activity.subject(given["subject"], of, execution, "cpu", of.window)
    read = rows(given["tokens"], execution, of.window)
    return Activity(model, [sites.locate(model, each) for each in at], read, order.order(of, read), batch_tokens)


def test_a_pass_ends_at_the_last_site_and_records_all_of_them(inputs) -> None:
    places = [Site(layer=1, kind="residual"), Site(layer=0), Site(layer=1, kind="mlp-output"), Site(layer=1)]
    active = activities(inputs, places)
    layers = active.model.get_submodule("gpt_neox.layers")
    counts = [0, 0, 0]
    for number in range(3):
        layers[number].register_forward_hook(lambda *_, at=number: counts.__setitem__(at, counts[at] + 1))
    ids = small_models.ids(tokens=16)
    found = active.of(ids.numpy())
    assert counts == [1, 1, 0]
    assert not active.model.get_submodule("gpt_neox.final_layer_norm")._forward_hooks
    for site in places:
        located = sites.locate(active.model, site)
        alone = sites.activations_upto(active.model, located, ids)
        x_ND, y_NE = found[located]
        assert torch.equal(x_ND, alone.x.flatten(0, 1))
        assert torch.equal(y_NE, alone.y.flatten(0, 1))


@pytest.mark.parametrize("family", ["gpt_neox", "gpt2", "llama", "gemma2"])
def test_a_coder_of_every_family_trains(family: str, tmp_path: Path) -> None:
    given = small_training.inputs(tmp_path / "store", family)
    assert build(given, tmp_path / "out", spec(steps=3))["ce"]["original"] > 0
    for window, fused in ((64, False), (512, family != "gemma2")):
        model = activity.subject(given["subject"], SPEC, Execution(), "cpu", window)
        assert model.config._attn_implementation == ("sdpa" if fused else "eager")


@pytest.mark.parametrize("mix", [0, 256])
def test_how_many_windows_pass_at_a_time_changes_rounding_alone(inputs, tmp_path: Path, mix: int) -> None:
    of = spec(steps=20, mix=mix)
    one = build(inputs, tmp_path / "one", of)
    other = build(inputs, tmp_path / "other", of, batch_tokens=64)
    for point, its in zip(one["curve"], other["curve"], strict=True):
        assert point == pytest.approx(its, rel=1e-3)
    assert one["ce"] == pytest.approx(other["ce"], rel=1e-3)
    for name, tensor in weights(tmp_path / "one").items():
        assert torch.allclose(tensor, weights(tmp_path / "other")[name], atol=2e-3), name


def test_windows_longer_than_the_subject_reads_are_refused(inputs, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"at most 49 tokens at a time: a window to train the coder on has 50"):
        build(inputs, tmp_path, spec(window=50))


@pytest.mark.parametrize(("changed", "name"), [({"mix": 32}, "mix"), ({"mix": 0, "batch": 32}, "batch")])
def test_more_processes_than_windows_are_refused(inputs, changed: dict, name: str) -> None:
    class Three(Alone):
        world = 3

    given = activities(inputs, [Site(layer=1)], of := spec(**changed))
    read = rows(inputs["tokens"], Execution(), of.window)
    with pytest.raises(SettingError, match=rf"it has 2, and there are 3 processes\. Raise --set coder\.{name}"):
        Activity(given.model, given._located, read, given.order, 8192, Three())


def test_a_gpu_that_is_not_there_is_named(inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SettingError, match=r"no GPU here for execution\.device=cuda\. Use --device cpu"):
        build(inputs, tmp_path, device="cuda")


# -- every setting does something -------------------------------------------------------------------------------------

RELU = {"activation": "relu", "penalty": 0.1}
JUMPRELU = {"activation": "jumprelu", "penalty": 0.1, "threshold": 0.5}
SIGNUM = {"optimizer": "signum", "learning_rate": 0.01, "steps": 4}
AUXK = {"auxk": 8, "k": 1, "dead_after": 64, "steps": 4}
SETTINGS: dict[str, tuple[dict, dict]] = {
    "site": ({}, {"site": {"layer": 0}}),
    "width": ({}, {"width": 49}),
    "k": ({}, {"k": 3}),
    "skip": ({}, {"skip": False}),
    "steps": ({}, {"steps": 3}),
    "batch": ({}, {"batch": 65}),
    "learning_rate": ({}, {"learning_rate": 0.01}),
    "seed": ({"order_seed": 0}, {"seed": 1}),
    "activation": ({}, {"activation": "batchtopk"}),
    "penalty": (RELU, {"penalty": 0.2}),
    "penalty_warm_up": (RELU, {"penalty_warm_up": 5}),
    "threshold": (JUMPRELU, {"threshold": 0.6}),
    "bandwidth": (JUMPRELU, {"bandwidth": 0.3}),
    "loss": ({}, {"loss": "relative"}),
    "init": ({}, {"init": "uniform"}),
    "unit_decoder": ({**SAE, "init": "tied"}, {"unit_decoder": True}),
    "tied_bias": ({**SAE, "init": "tied"}, {"tied_bias": True}),
    "optimizer": ({}, {"optimizer": "signum"}),
    "momentum": (SIGNUM, {"momentum": 0.5}),
    "warm_up": ({}, {"warm_up": 1}),
    "decay": ({"steps": 4, "warm_up": 1}, {"decay": 1.0}),
    "auxk": (AUXK, {"auxk": 1}),
    "auxk_weight": (AUXK, {"auxk_weight": 1.0}),
    "dead_after": (AUXK, {"dead_after": 1 << 20}),
    "order": ({}, {"order": "shuffled"}),
    "window": ({}, {"window": 8}),
    "mix": ({}, {"mix": 128}),
    "order_seed": ({}, {"order_seed": 1}),
    "precision": ({}, {"precision": "bfloat16"}),
}
ELSEWHERE = {"kind", "data"}
"""Settings that choose another input or another step altogether."""


def test_no_setting_is_forgotten_here() -> None:
    assert set(SETTINGS) | ELSEWHERE == set(CoderSpec.model_fields)
    assert train.shared(spec(data=SplitTokens())) != train.shared(spec(data=TokenRows()))


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_changes_the_result(inputs, tmp_path: Path, name: str) -> None:
    given, changed = SETTINGS[name]
    basis = {"steps": 2, **given}
    build(inputs, tmp_path / "one", spec(**basis))
    build(inputs, tmp_path / "other", spec(**{**basis, **changed}))
    one, other = weights(tmp_path / "one"), weights(tmp_path / "other")
    same = one.keys() == other.keys() and all(
        each.shape == other[key].shape and torch.equal(each, other[key]) for key, each in one.items()
    )
    assert not same


def test_importing_the_coders_says_nothing() -> None:
    modules = ("train", "build", "saved", "optimizers", "activity", "order", "learned", "ops", "formats")
    command = [sys.executable, "-c", "".join(f"import nlrewrite.coders.{each}\n" for each in modules)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout + done.stderr == ""
