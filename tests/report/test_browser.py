"""The page in a real browser, from disk, with the network off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nlrewrite.report import figures, wording
from nlrewrite.report.facts import Facts
from nlrewrite.report.latents import Dossier
from nlrewrite.report.page import page
from tests.report.browser import Page, browser
from tests.report.conftest import Made
from tests.report.test_figures import drawn

pytestmark = pytest.mark.system
__all__ = ["drawn"]

CONTRAST = """
(() => {
  const linear = (value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  const channel = (value) => linear(value / 255);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const ground = luminance(numbers(getComputedStyle(document.body).backgroundColor));
  const ratio = (colour) => {
    const [high, low] = [luminance(numbers(colour)), ground].sort((a, b) => b - a);
    return (high + 0.05) / (low + 0.05);
  };
  const words = Array.from(document.querySelectorAll("h1, p, td, th, small, figcaption, .sentence, a"));
  const labels = Array.from(document.querySelectorAll("svg.plot text"));
  return {
    words: Math.min(...words.map((each) => ratio(getComputedStyle(each).color))),
    labels: Math.min(...labels.map((each) => ratio(getComputedStyle(each).fill))),
    ground,
  };
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture
def file(
    tmp_path: Path, told: Facts, with_gap: dict[str, Any], drawn: list[figures.Figure], listed: list[Dossier]
) -> Path:
    found = tmp_path / "report.html"
    found.write_text(page(with_gap, told, drawn, listed), encoding="utf-8")
    return found


@pytest.fixture
def opened(tab: Page, file: Path) -> Page:
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
    tab.size(1300, 1100)
    tab.scheme("light")
    tab.open(file)
    return tab


def test_the_published_page_shows_headline_plots_and_a_latent(tab: Page, made: Made, told: Facts):
    tab.size(1300, 1100)
    tab.open(made.published / "report.html")
    assert tab.value("document.querySelector('h1').innerText") == wording.title(told)
    sizes = tab.value(
        "Array.from(document.querySelectorAll('svg.plot'), (each) => each.getBoundingClientRect())"
        ".map((box) => [box.width, box.height])"
    )
    assert len(sizes) >= 6
    assert all(width > 250 and height > 150 for width, height in sizes)
    assert tab.value("document.querySelector('.latents .sentence').getBoundingClientRect().height") > 10
    assert tab.requests() == [(made.published / "report.html").as_uri(), "data:,"][: len(tab.requests())]
    assert tab.complaints() == []


def test_the_page_asks_for_nothing_and_complains_of_nothing(opened: Page, file: Path):
    assert set(opened.requests()) <= {file.as_uri(), "data:,"}
    assert opened.complaints() == []
    assert opened.picture().startswith(b"\x89PNG")


def test_a_request_would_have_been_noticed(tab: Page, tmp_path: Path):
    file = tmp_path / "other.html"
    file.write_text('<!doctype html><img src="http://example.org/a.png"><script>nothing.here</script>')
    tab.open(file)
    assert "http://example.org/a.png" in tab.requests()
    assert any("nothing is not defined" in complaint for complaint in tab.complaints())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_the_light_and_in_the_dark(opened: Page, scheme: str):
    opened.scheme(scheme)
    found = opened.value(CONTRAST)
    assert (found["ground"] > 0.9) == (scheme == "light")
    assert (found["ground"] < 0.05) == (scheme == "dark")
    assert found["words"] >= 4.5
    assert found["labels"] >= 3


@pytest.mark.parametrize("width", [320, 400, 700, 1000, 1600])
def test_the_page_fits_its_window(opened: Page, width: int):
    opened.size(width, 900)
    assert opened.value("document.documentElement.scrollWidth") <= width
    narrowest = opened.value(
        "Math.min(...Array.from(document.querySelectorAll('svg.plot'), (each) => each.getBoundingClientRect().width))"
    )
    assert narrowest > 250


def _choose(tab: Page, order: str) -> None:
    choose = f"order.value = '{order}'; order.dispatchEvent(new Event('change'));"
    tab.value(f"{{ const order = document.querySelector('.tools select'); {choose} }}")


def test_latents_are_found_and_sorted(opened: Page, listed: list[Dossier]):
    shown = "Array.from(document.querySelectorAll('.latents > li')).filter((each) => !each.hidden)"
    numbers = f"{shown}.map((each) => Number(each.dataset.latent))"
    assert opened.value(numbers) == [each.latent for each in listed]
    _choose(opened, "latent up")
    assert opened.value(numbers) == sorted(each.latent for each in listed)
    _choose(opened, "detection up")
    scores = [each.scores["detection_f1"] for each in listed]
    found = [value for value in opened.value(f"{shown}.map((each) => each.dataset.detection)") if value]
    assert found == sorted(found)
    assert len(found) == sum(score is not None for score in scores)
    wanted = listed[3].sentence
    opened.value(
        "{const find = document.querySelector('.tools input'); "
        f"find.value = {wanted[:30]!r}; find.dispatchEvent(new Event('input'));}}"
    )
    assert listed[3].latent in opened.value(numbers)
    assert len(opened.value(numbers)) < len(listed)
    told = opened.value("document.querySelector('.tools output').innerText")
    assert told == f"{len(opened.value(numbers))} of {len(listed)} latents"


def test_a_latent_unfolds_without_the_script(tab: Page, file: Path):
    tab.call("Emulation.setScriptExecutionDisabled", value=True)
    tab.open(file)
    assert tab.value("document.querySelector('.tools').getBoundingClientRect().height") == 0
    height = "document.querySelectorAll('.latents details')[1].getBoundingClientRect().height"
    folded = tab.value(height)
    tab.value("document.querySelectorAll('.latents summary')[1].click()")
    assert tab.value(height) > folded + 50
    tab.call("Emulation.setScriptExecutionDisabled", value=False)
