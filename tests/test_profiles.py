"""Profiles and overrides: equal meanings give equal specs, and what cannot be meant is refused with its neighbours."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nlrewrite import profiles, protocols
from nlrewrite.artifacts import digest
from nlrewrite.errors import NotYet, SettingError
from nlrewrite.execution import Execution
from nlrewrite.profiles import Overrides, settled
from nlrewrite.published import CAPABILITIES, UNCHOSEN
from nlrewrite.specs import CoderSpec, HubCoder, HubDataset, HubSubject, HubTokens, RewriteSpec, TinySubject


def spec(*settings: str, profile: str = "tiny", **fields: Any) -> RewriteSpec:
    return settled(profile, Overrides(settings=settings, **fields))


def test_tiny_is_the_defaults_and_comes_first():
    assert spec() == RewriteSpec()
    assert profiles.profile_names()[0] == "tiny"


def test_the_other_tiny_profiles():
    assert spec(profile="tiny-no-skip") == spec("coder.skip=false")
    assert spec(profile="tiny-sae") == spec("coder.skip=false", "coder.site.kind=residual")


def test_the_form_and_the_dotted_names_mean_the_same():
    form: dict[str, Any] = {
        "k": 8,
        "latents": 512,
        "layer": 1,
        "coder_steps": 9,
        "max_quotes": 3,
        "max_words": 20,
        "resamples": 300,
    }
    assert spec(**form, protocol="p1") == spec(
        "evaluate.protocol=p1",
        "coder.k=8",
        "coder.width=512",
        "coder.site.layer=1",
        "coder.steps=9",
        "explain.max_quotes=3",
        "explain.max_words=20",
        "evaluate.resamples=300",
    )


def test_every_field_of_the_form_is_described_placed_and_used():
    shown = Overrides.model_fields
    places = [
        field.json_schema_extra["position"] for field in shown.values() if isinstance(field.json_schema_extra, dict)
    ]
    assert places == list(range(len(shown)))
    assert all(field.description for field in shown.values())
    assert set(shown) == {"seed", "settings", *profiles.FORM}
    assert set(profiles.FORM.values()) <= set(profiles.settings())
    assert Overrides() == Overrides.model_validate_json("{}")
    with pytest.raises(ValidationError, match="latents"):
        Overrides(latents=1)


def test_a_settings_file_means_the_same_as_its_dotted_names():
    nested = {"coder": {"k": 8, "site": {"kind": "residual"}, "skip": False}, "tokens": {"limits": {"report": 5}}}
    expected = spec("coder.k=8", "coder.site.kind=residual", "coder.skip=false", "tokens.limits.report=5")
    assert spec(*profiles.flat(nested)) == expected
    assert (
        spec('coder={"k": 8, "site": {"kind": "residual"}, "skip": false}', 'tokens.limits={"report": 5}') == expected
    )


@pytest.mark.parametrize("profile", profiles.profile_names())
def test_a_spec_written_out_is_the_settings_that_make_it(profile: str):
    whole = spec(profile=profile)
    written = [line for line in profiles.flat(whole.model_dump(mode="json")) if not line.endswith("={}")]
    assert spec(*written) == whole


@given(
    k=st.integers(1, 64),
    seed=st.integers(0, 2**31 - 1),
    rate=st.floats(1e-6, 0.5),
    fractions=st.lists(st.floats(0.01, 1.0), min_size=1, max_size=4, unique=True),
)
def test_values_come_through_as_they_are(k: int, seed: int, rate: float, fractions: list[float]):
    made = spec(f"coder.k={k}", f"text.seed={seed}", f"coder.learning_rate={rate!r}", f"evaluate.fractions={fractions}")
    assert (made.coder.k, made.text.seed, made.coder.learning_rate) == (k, seed, rate)
    assert list(made.evaluate.fractions) == fractions


def test_a_seed_goes_everywhere_but_where_one_is_named():
    made = spec("coder.seed=3", seed=7)
    dumped = made.model_dump()
    seeds = {name: stage["seed"] for name, stage in dumped.items() if isinstance(stage, dict) and "seed" in stage}
    assert seeds.pop("coder") == 3
    assert set(seeds.values()) == {7}
    every = {name for name, stage in RewriteSpec().model_dump().items() if isinstance(stage, dict) and "seed" in stage}
    assert set(seeds) == every - {"coder"}
    assert digest(spec(seed=7)) != digest(spec(seed=8))


def test_another_kind_drops_the_fields_of_the_old_one():
    hub = ("subject.revision=" + "1" * 40, "subject.kind=hub", "subject.model=some/model")
    made = spec(*hub, profile="smoke")
    assert made.subject == HubSubject(model="some/model", revision="1" * 40)
    assert spec("subject.kind=tiny", profile="smoke").subject == spec(profile="smoke").subject
    assert spec("subject.kind=tiny", profile="pythia-160m-sae").subject == TinySubject()


def test_text_fields_keep_their_text():
    made = spec("text.source.kind=hub", "text.source.dataset=12", "text.source.revision=" + "1" * 40)
    assert made.text.source == HubDataset(dataset="12", revision="1" * 40)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("coder.wdith=3", "no setting is called 'coder.wdith' in profile smoke. Did you mean coder.width"),
        ("k=3", "Did you mean coder.k"),
        ("zzzz=3", "Its sections are text, tokens, subject"),
        ("coder.site.layr=1", "coder.site.layer"),
        ("coder.k=65", "k must be at most the number of latents: k=65, latents=64. Lower --set coder.k"),
        ("coder.k=0", "coder.k: input should be greater than or equal to 1, not 0. Change --set coder.k"),
        ("coder.k=many", "coder.k: input should be a valid integer"),
        ("coder.site.kind=head", "coder.site.kind: input should be 'mlp', 'mlp-output' or 'residual', not 'head'"),
        ("coder.site.kind=residual", "only an mlp site can have a skip term"),
        ("coder", "a setting is written as name=value: 'coder'"),
        ("=3", "a setting is written as name=value"),
        ("coder=3", "coder is a section, not a value: 3. Set one of coder.kind, coder.site.kind"),
        ("coder={}", "coder is a section"),
        ("subject.kind=cat", "subject.kind must be one of 'tiny', 'hub', 'folder': it is 'cat'"),
        ("subject.kind=hub", "subject.model is needed by subject.kind=hub and has no default"),
        ("subject.model=a/b", "subject.model is not a setting of subject.kind=tiny"),
        ("text.source.kind=hub", "text.source.dataset is needed by text.source.kind=hub"),
        ("text.source.kind=cat", "text.source.kind must be one of"),
        ("text.shares.train=0.9", "shares must add up to 1"),
        ("evaluate.fractions=[0, 1]", "evaluate.fractions: input should be greater than 0, not 0"),
        ("evaluate.fractions=[0.5, 0.5]", "evaluate.fractions names one twice: 0.5, 0.5. Name each once"),
        ('calibrate.calibrators=["levels@centred"]', "Leave @centred out, or use hurdle@centred"),
        ("evaluate.topk=[]", "evaluate.topk takes a list of at least 1, not []. Change --set evaluate.topk"),
        ("ladder.fractions=[2]", "ladder.fractions: input should be less than or equal to 1, not 2"),
        ("requirement.specificities=[1]", "requirement.specificities: input should be less than 1, not 1"),
        ("coder.penalty=1e400", "coder.penalty: input should be a finite number, not inf. Change --set coder.penalty"),
        ("sweep.values=[1e400]", "sweep.values: input should be a finite number, not inf. Change --set sweep.values"),
        ("sweep.values=4,8", """sweep.values takes a list, not "4,8". Write --set 'sweep.values=[4,8]'"""),
        ("coder.data.kind=hub", "coder.data.dataset is needed by coder.data.kind=hub and has no default."),
        ("probes=ladder", """probes takes a list, not "ladder". Write --set 'probes=["ladder"]'"""),
        ("sample_size.cases=[[10]]", "each entry of sample_size.cases is a list of its own, as in [10, 40], not [10]"),
        ("sample_size.cases=[10]", "each entry of sample_size.cases is a list of its own, as in [10, 40], not 10"),
        ('calibrate.calibrators=["hurdel"]', "no calibrator is called 'hurdel'"),
        ('calibrate.calibrators=["quantile-6-on-prompt"]', "needs one that may be chosen before the report split"),
        ('calibrate.calibrators=["none","none"]', "none stands 2 times in calibrate.calibrators. Name it once"),
        ('sample_size.calibrators=["token-mean"]', "Leave it out of --set sample_size.calibrators"),
        ('coder={"wdith": 3}', "no setting is called 'coder.wdith'"),
    ],
)
def test_what_cannot_be_meant_is_refused(setting: str, message: str):
    with pytest.raises(SettingError, match=re.escape(message)) as caught:
        spec(setting, profile="smoke")
    assert "\n" not in str(caught.value)


def test_a_revision_is_a_commit_and_never_a_branch():
    with pytest.raises(SettingError, match=r"subject\.revision: string should match pattern .* not 'main'"):
        spec("subject.kind=hub", "subject.model=a/b", "subject.revision=main")


def test_an_unknown_profile_names_its_neighbours():
    with pytest.raises(SettingError, match=r"no profile is called 'tiny-sea'.*tiny-sae"):
        spec(profile="tiny-sea")


def test_resolving_fills_in_the_content_of_local_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("A document about nothing in particular.")
    execution = Execution(text_folder=str(tmp_path))
    folder = Overrides(settings=("text.source.kind=folder",))
    first = profiles.resolve("tiny", folder, execution)
    assert profiles.resolve("tiny", folder, execution) == first
    (tmp_path / "a.txt").write_text("Another document.")
    assert digest(profiles.resolve("tiny", folder, execution)) != digest(first)
    python = profiles.resolve("tiny", Overrides(), Execution())
    assert re.fullmatch("[0-9a-f]{64}", python.text.source.model_dump()["content"])
    with pytest.raises(SettingError, match="--subject-folder"):
        profiles.resolve("tiny", Overrides(settings=("subject.kind=folder",)), Execution())


PUBLISHED = {
    "pythia-160m-transcoder": ("trained", "mlp", 6, 32_768, 32, 327_680_000),
    "pythia-160m-transcoder-p1": ("trained", "mlp", 6, 32_768, 32, 327_680_000),
    "pythia-160m-sae": ("hub", "residual", 6, 32_768, 32, 32_768_000),
    "smollm2-135m-transcoder": ("trained", "mlp", 15, 18_432, 128, 36_864_000),
    "gemma-2-9b-sae": ("hub", "residual", 11, 131_072, 49, 1_049_000),
    "gpt2-small-transcoders": ("hub", "mlp", 8, 24_576, 16, 0),
    "gpt2-small-sweep": ("trained", "mlp", 8, 24_576, 16, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings(name: str):
    made = profiles.resolve(name, Overrides(), Execution())
    published = profiles.chosen(name).published
    assert published is not None
    coder = made.coder
    found = (coder.kind, coder.site.kind, coder.site.layer, coder.width, coder.k, published.queries(coder.width))
    assert found == PUBLISHED[name]
    assert published.latents == coder.width
    if profiles.chosen(name).needs:
        with pytest.raises(NotYet, match=f"profile {name} cannot be run yet: it needs"):
            profiles.require_runnable(name, made)


@pytest.mark.parametrize(
    ("name", "optimizer", "rate", "tokens"),
    [("pythia-160m-transcoder", "adam", 1.414e-4, 8e9), ("smollm2-135m-transcoder", "signum", 4.714e-3, 1e9)],
)
def test_published_transcoders_are_trained_by_their_recipe(name: str, optimizer: str, rate: float, tokens: float):
    coder = profiles.settled(name, Overrides()).coder
    assert isinstance(coder, CoderSpec) and isinstance(coder.data, HubTokens)
    assert (coder.optimizer, coder.loss, coder.init, coder.activation) == (optimizer, "fvu", "uniform", "topk")
    assert coder.rate == pytest.approx(rate, rel=1e-3)
    assert (coder.order, coder.window, coder.batch, coder.mix) == ("sequential", 2049, 64 * 2049, 0)
    assert tokens * 0.999 < coder.steps * coder.batch <= tokens < coder.data.tokens
    assert coder.data.first >= 100_000  # behind the documents that everything is measured on


def test_the_published_transcoders_of_gpt2_are_replaced_layer_by_layer():
    made = profiles.settled("gpt2-small-transcoders", Overrides())
    profiles.require_runnable("gpt2-small-transcoders", made, "replace")  # only the rewriting takes circuits
    coders = made.layers.coders(made.coder)
    assert list(coders) == [f"coder-{layer}" for layer in range(12)]
    last = coders["coder-11"]
    assert isinstance(last, HubCoder) and "blocks.11.ln2" in last.path and last.site.layer == 11


def test_the_published_sweep_varies_the_penalty_of_a_relu():
    made = profiles.settled("gpt2-small-sweep", Overrides())
    profiles.require_runnable("gpt2-small-sweep", made, "sweep")
    coders = list(made.sweep.coders(made.coder).values())
    assert len(coders) == 8 and {each.activation for each in coders if isinstance(each, CoderSpec)} == {"relu"}


def test_every_published_profile_is_tested_and_every_need_has_words():
    names = {name for name, profile in profiles.PROFILES.items() if profile.published}
    assert names == set(PUBLISHED)
    assert {need for profile in profiles.PROFILES.values() for need in profile.needs} == set(CAPABILITIES)


def test_the_two_versions_of_the_paper_follow_their_protocols():
    later, first = (spec(profile=f"pythia-160m-transcoder{suffix}") for suffix in ("", "-p1"))
    assert (later.evaluate.protocol, first.evaluate.protocol) == ("p2", "p1")
    assert (later.evaluate.least_base_loss, first.evaluate.least_base_loss) == (0.1, 0.0)
    for made in (later, first):
        assert made.evaluate.positions == ("last",)
        assert made.evaluate.fractions == protocols.FRACTIONS
        assert protocols.PROTOCOLS[made.evaluate.protocol].calibrator in made.calibrate.calibrators


def test_an_unchosen_revision_plans_and_does_not_run():
    subject = ("subject.kind=hub", "subject.model=a/b", f"subject.revision={UNCHOSEN}")
    with pytest.raises(SettingError, match=r"--set subject\.revision=<commit>"):
        profiles.require_runnable("tiny", spec(*subject))
    text = ("text.source.kind=hub", "text.source.dataset=a/b", f"text.source.revision={UNCHOSEN}")
    with pytest.raises(SettingError, match=r"--set text\.source\.revision=<commit>"):
        profiles.require_runnable("tiny", spec(*text))
    data = ("coder.data.kind=hub", "coder.data.dataset=a/b", f"coder.data.revision={UNCHOSEN}")
    with pytest.raises(SettingError, match=r"--set coder\.data\.revision=<commit>"):
        profiles.require_runnable("tiny", spec(*data))
    profiles.require_runnable("tiny", spec())
