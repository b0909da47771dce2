import pytest

from nlrewrite.calibrate import methods, names, quantile
from nlrewrite.errors import SettingError
from nlrewrite.simulate.said import Reading
from nlrewrite.specs import CalibrateSpec, SampleSizeSpec


def test_a_name_is_taken_apart() -> None:
    assert methods.parse("hurdle") == methods.Name("hurdle", "hurdle")
    found = methods.parse("quantile-6-tenth@log-odds-centred+output-gain+refit")
    assert (found.base, methods.reading(found)) == ("quantile-6-tenth", Reading("log-odds", True))
    assert (found.gain, found.output_gain, found.refit) == (False, True, True)
    assert found.plain == methods.parse("quantile-6-tenth@log-odds-centred")
    assert methods.reading(methods.parse("beta@centred+gain")) == Reading("own", True)


def test_every_name_there_is_has_a_method_and_a_reading() -> None:
    assert set(methods.METHODS) == {*names.OTHERS, *names.QUANTILES}
    assert set(methods.READINGS) == set(names.NUMBERS)
    assert names.TYPES == quantile.TYPES
    for name in names.QUANTILES:
        assert name.endswith(names.ON_PROMPT) == (methods.METHODS[name].target == "on-prompt")


@pytest.mark.parametrize(
    "name",
    [
        "", "quantile-0", "quantile", "quantile-10", "hurdles", "hurdle@", "hurdle@digit", "hurdle+", "hurdle+gains",
        "hurdle+refit+gain", "hurdle+gain+gain", "+gain", "@centred", "hurdle@centred@centred",
        "hurdle+gain+output-gain", "quantile-6-tenth-on-prompt", "hurdle\n",
    ],
)  # fmt: skip
def test_an_unknown_calibrator_is_named_with_those_there_are(name: str) -> None:
    with pytest.raises(
        SettingError, match=r"there are none, mean, published, .*hurdle.*quantile-1 to quantile-9"
    ) as found:
        methods.parse(name)
    assert f"no calibrator is called {name!r}" in str(found.value)
    assert "Change --set calibrate.calibrators" in str(found.value)


@pytest.mark.parametrize(("name", "arm"), [("token-mean", "token_lookup"), ("bigram-mean", "bigram_lookup")])
def test_a_lookup_is_an_arm_and_no_calibrator(name: str, arm: str) -> None:
    with pytest.raises(SettingError, match=f"measures it as the arm {arm}"):
        methods.parse(name)


@pytest.mark.parametrize(
    ("name", "information"),
    [
        ("mean", "nothing"),
        ("none", "maximum"),
        ("none+gain", "paired"),
        ("none+output-gain", "outputs"),
        ("quantile-7", "marginals"),
        ("quantile-6+gain", "paired"),
        ("quantile-6-on-prompt", "test marginals"),
        ("quantile-6-on-prompt+gain", "test marginals"),
        ("prior-shift", "marginals"),
        ("platt@expected", "paired"),
        ("isotonic-shrunk", "paired"),
        ("digit-values", "paired"),
        ("hurdle+refit", "outputs"),
    ],
)
def test_what_a_calibrator_used_is_said(name: str, information: str) -> None:
    assert methods.information(methods.parse(name)) == information


def test_the_default_is_never_what_peeks_or_changes_the_coder() -> None:
    for name, allowed in (
        ("hurdle", True), ("none", True), ("quantile-6+output-gain", True), ("quantile-6-on-prompt", False),
        ("quantile-1-on-prompt+gain", False), ("hurdle+refit", False),
    ):  # fmt: skip
        assert methods.may_be_chosen(methods.parse(name)) == allowed, name


def test_every_default_is_a_calibrator() -> None:
    for name in (*CalibrateSpec().calibrators, *SampleSizeSpec().calibrators):
        assert methods.parse(name).full == name


def test_sample_sizes_are_measured_with_the_coders_own_decoder() -> None:
    with pytest.raises(ValueError, match=r"hurdle\+refit has one of its own\. Leave \+refit out"):
        SampleSizeSpec(calibrators=("quantile-6", "hurdle+refit"))
    assert SampleSizeSpec(calibrators=("hurdle+output-gain",)).calibrators == ("hurdle+output-gain",)
