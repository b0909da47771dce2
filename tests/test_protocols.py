"""Protocols: what they fix, that a user's settings win, and that what is wrong with them is said."""

from typing import Any

import pytest

from nlrewrite import profiles
from nlrewrite.errors import SettingError
from nlrewrite.printing import headline
from nlrewrite.profiles import Overrides, settled
from nlrewrite.protocols import PROTOCOLS, merged
from nlrewrite.specs import EvaluateSpec, RewriteSpec
from tests.small_steps import RESULTS

PUBLISHED = [name for name in PROTOCOLS if name != "ours"]


def test_every_protocol_of_the_specs_is_there() -> None:
    assert set(EvaluateSpec.model_json_schema()["properties"]["protocol"]["enum"]) == set(PROTOCOLS)
    form = Overrides.model_json_schema()["properties"]["protocol"]["anyOf"][0]["enum"]
    assert form == list(PROTOCOLS)


def test_ours_is_the_defaults() -> None:
    assert settled("tiny", Overrides(protocol="ours")) == RewriteSpec()


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("profile", ["tiny", "smoke", "pythia-160m-transcoder"])
def test_a_protocol_fixes_its_fields_on_any_profile(name: str, profile: str) -> None:
    made = settled(profile, Overrides.model_validate({"protocol": name}))
    assert made.evaluate.protocol == name
    if name == "ours":
        return
    found = made.model_dump()
    for section, fields in PROTOCOLS[name].fields.items():
        for field, value in fields.items() if isinstance(fields, dict) else [("", fields)]:
            assert (found[section][field] if field else found[section]) == value, (section, field)
    assert made.coder == settled(profile, Overrides()).coder


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_users_setting_wins_and_naming_it_either_way_is_the_same(name: str) -> None:
    by_form = Overrides.model_validate({"protocol": name, "settings": ("evaluate.subsets=5", "rungs=true")})
    made = settled("tiny", by_form)
    assert (made.evaluate.subsets, made.rungs, made.evaluate.positions) == (5, True, ("last",))
    named = (f"evaluate.protocol={name}", "evaluate.subsets=5", "rungs=true")
    assert settled("tiny", Overrides(settings=named)) == made


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_protocol_is_quoted_by_a_calibrator_it_fits_and_names_its_defects(name: str) -> None:
    protocol = PROTOCOLS[name]
    assert protocol.calibrator in protocol.fields["calibrate"]["calibrators"]
    told = protocol.told(name)
    assert told["name"] == name
    assert len(told["defects"]) >= 5
    assert all(sentence.endswith(".") and "\n" not in sentence for sentence in told["defects"])
    assert len(set(told["defects"])) == len(told["defects"])


def test_the_program_evicts_and_the_texts_do_not() -> None:
    policies = {name: settled("tiny", Overrides.model_validate({"protocol": name})).evaluate for name in PROTOCOLS}
    assert {name for name, each in policies.items() if "mixed" in each.topk} == {"p1-code"}
    assert {name for name, each in policies.items() if each.draw == "fresh"} == {"p1-code"}
    assert {name for name, each in policies.items() if each.least_base_loss > 0} == {"p2"}


def test_an_unknown_protocol_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(SettingError, match=r"evaluate\.protocol: input should be 'ours', 'p1', 'p2' or 'p1-code'"):
        settled("tiny", Overrides(settings=("evaluate.protocol=p3",)))


def test_merging_leaves_both_as_they_were() -> None:
    mine: dict[str, Any] = {"a": {"b": 1, "c": 2}, "d": 3}
    theirs: dict[str, Any] = {"a": {"b": 4}, "e": {"f": 5}}
    out = merged(mine, theirs)
    assert out == {"a": {"b": 4, "c": 2}, "d": 3, "e": {"f": 5}}
    out["a"]["b"], out["e"]["f"] = 9, 9
    assert (mine["a"]["b"], theirs["a"]["b"], theirs["e"]["f"]) == (1, 4, 5)
    assert profiles.PROFILES["tiny"].fields == {}


def test_a_run_says_where_it_patched_and_who_settled_the_calibrator() -> None:
    ours = RESULTS["headline"]
    said = headline({**RESULTS, "headline": ours})
    assert "all latents at all positions" in said
    assert said.endswith("calibrator chosen on calibrate.")
    theirs = headline({**RESULTS, "headline": {**ours, "position": "last", "chosen_on": "protocol"}})
    assert "all latents at the last position" in theirs
    assert theirs.endswith("calibrator as the protocol has it.")
