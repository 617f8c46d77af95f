"""The report's page in Chromium: no error, no request, zoom and keyboard; and without JavaScript."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from report_runs import records_of, write_run

from launcher import cli

CHROMIUM = Path("/usr/bin/chromium")  # `make system` installs it

if not CHROMIUM.exists():
    pytest.skip(f"{CHROMIUM} is missing: make system", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages: of one run, of two, of one that failed, and of one with 10^5 records."""
    folder = tmp_path_factory.mktemp("pages")
    one, other = (write_run(folder, name, records_of(top1=top1)) for name, top1 in (("one", 0.9), ("other", 0.8)))
    failed = write_run(folder, "failed", records_of(3), finish=False)
    failed.end_attempt(1, 79, "DivergedError: the loss is nan", 3)
    failed.incident_summary(1).parent.mkdir(parents=True)
    failed.incident_summary(1).write_text("attempt 1 failed: </script><script>alert(1)</script>")
    long = write_run(folder, "long", records_of(100_000, every=2000))
    made = {}
    for name, runs in {"one": [one], "two": [one, other], "failed": [failed], "long": [long]}.items():
        made[name] = folder / f"{name}.html"
        assert cli.main(["report", *(str(run.path) for run in runs), "--html", str(made[name])]) == 0
    return made


@dataclass
class Opened:
    """A page in a browser, with what it complained about and what it asked for."""

    page: Any
    problems: list[str] = field(default_factory=list)

    def line(self, chart: str = "loss") -> str:
        """The path of the first curve of a chart."""
        return str(self.page.locator(f"#chart-{chart} .plot .line").last.get_attribute("d"))

    def press(self, *keys: str, chart: str = "loss") -> None:
        for key in keys:
            self.page.locator(f"#chart-{chart} .plot").press(key)

    def readout(self, chart: str = "loss") -> str:
        return str(self.page.locator(f"#chart-{chart} .readout").text_content())


@pytest.fixture
def opened(chromium: Any, files: dict[str, Path]) -> Iterator[Any]:
    contexts = []

    def open_page(name: str = "one", width: int = 1280, **options: Any) -> Opened:
        context = chromium.new_context(viewport={"width": width, "height": 900}, accept_downloads=True, **options)
        contexts.append(context)
        found = Opened(context.new_page())
        found.page.on("console", lambda message: found.problems.append(message.text))
        found.page.on("pageerror", lambda error: found.problems.append(str(error)))
        address = files[name].as_uri()
        found.page.on("request", lambda one: found.problems.append(one.url) if one.url != address else None)
        found.page.goto(address)
        return found

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["one", "two", "failed"])
def test_a_page_opens_without_a_complaint_and_fits(opened: Any, name: str, width: int, scheme: str) -> None:
    found = opened(name, width, color_scheme=scheme)
    assert found.problems == []
    assert found.page.evaluate("document.documentElement.scrollWidth") <= width
    back = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(json.loads(f"[{back[4:-1]}]")) < 300) == (scheme == "dark")
    assert found.page.locator("figure.chart").count() >= 5
    unnamed = (
        "[...document.querySelectorAll('button, select')].filter((one) => !one.innerText && !one.ariaLabel).length"
    )
    assert found.page.evaluate(unnamed) == 0


def test_the_policy_stops_requests_and_scripts(opened: Any) -> None:
    found = opened()
    script = "fetch('http://127.0.0.1:9/x').then(() => 'sent', () => 'refused')"
    assert found.page.evaluate(script) == "refused"
    found.page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.ran = 1\">')")
    assert found.page.evaluate("window.ran === undefined")
    assert any("Content Security Policy" in problem for problem in found.problems)


def test_dragging_zooms_all_charts_and_a_double_click_resets(opened: Any) -> None:
    found = opened()
    before, before_lr = found.line(), found.line("lr")
    plot = found.page.locator("#chart-loss .plot")
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    y = box["y"] + 80
    found.page.mouse.move(box["x"] + 100, y)
    found.page.mouse.down()
    found.page.mouse.move(box["x"] + 250, y, steps=3)
    assert found.page.locator("#chart-loss .pick").count() == 1
    found.page.mouse.up()
    assert found.line() != before
    assert found.line("lr") != before_lr
    plot.dblclick()
    assert (found.line(), found.line("lr")) == (before, before_lr)


def test_the_keyboard_reads_values_zooms_moves_and_resets(opened: Any) -> None:
    found = opened()
    before = found.line()
    found.press("Home")
    assert found.readout() == "epoch 0.1 · val 0.6 · training batches 2"
    found.press("ArrowRight")
    assert found.readout().startswith("epoch 0.2 · ")
    found.press("End")
    assert found.readout() == "epoch 2 · val 0.15 · training batches 0.1"
    found.press("+")
    zoomed = found.line()
    assert zoomed != before
    found.press("Shift+ArrowLeft")
    assert found.line() not in (before, zoomed)
    found.press("0")
    assert found.line() == before
    found.press("l")
    assert found.line() != before
    assert found.page.locator("#chart-loss figcaption button").first.get_attribute("aria-pressed") == "true"
    assert found.problems == []


def test_everything_is_reached_with_the_tab_key(opened: Any) -> None:
    found = opened("two")
    focusable = "document.querySelectorAll('a, button, select, summary, [tabindex]').length"
    reached = set()
    for _ in range(found.page.evaluate(focusable)):
        found.page.keyboard.press("Tab")
        reached.add(found.page.evaluate("[...document.querySelectorAll('*')].indexOf(document.activeElement)"))
    wanted = (
        "[...document.querySelectorAll('*')].map((one, n) => one.matches('button, select, summary, .plot') ? n : -1)"
    )
    assert {number for number in found.page.evaluate(wanted) if number >= 0} <= reached
    found.page.locator("#chart-loss .plot").focus()
    found.page.keyboard.press("Tab")
    assert found.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_runs_and_series_are_switched_off_and_the_axis_is_chosen(opened: Any) -> None:
    found = opened("two")
    lines = found.page.locator("#chart-loss .plot .line")
    assert lines.count() == 4
    found.page.get_by_role("button", name="other").click()
    assert lines.count() == 2
    found.page.locator("#chart-loss .legend button").first.click()
    assert lines.count() == 1
    found.page.get_by_role("button", name="training time").click()
    found.press("End")
    assert found.readout().startswith("13 s · one: training batches 0.1")
    found.page.get_by_label("Smoothing").select_option("more")
    assert lines.count() == 2  # the curve, and behind it what was recorded


@pytest.mark.parametrize("kind", ["SVG", "PNG"])
def test_a_chart_is_saved_with_its_title_and_legend(opened: Any, kind: str, tmp_path: Path) -> None:
    found = opened("two", color_scheme="dark")
    with found.page.expect_download() as download:
        found.page.get_by_role("button", name=f"Save Loss as {kind}").click()
    file = tmp_path / download.value.suggested_filename
    download.value.save_as(file)
    content = file.read_bytes()
    assert file.name == f"loss.{kind.lower()}"
    if kind == "SVG":
        text = content.decode()
        assert text.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
        assert "other: training batches" in text
        assert "var(" not in text
    else:
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000
    assert found.problems == []


@pytest.mark.parametrize("name", ["one", "two"])
def test_without_javascript_there_are_the_drawings_and_the_tables(opened: Any, name: str) -> None:
    found = opened(name, java_script_enabled=False)
    assert found.problems == []
    page = found.page
    assert page.locator("#chart-loss .plot svg .line").count() >= 2
    assert not page.locator("#tools").is_visible()
    page.locator("#chart-top1 summary").click()
    assert page.locator("#chart-top1 table").first.is_visible()
    assert page.get_by_role("cell", name="67.50 %").first.is_visible()
    assert page.get_by_role("img", name="Loss").is_visible()


def test_a_run_of_many_records_is_a_small_page_that_works(opened: Any, files: dict[str, Path]) -> None:
    assert files["long"].stat().st_size < 3_000_000
    found = opened("long")
    assert found.page.get_by_text("a point stands for up to 67 records").is_visible()
    found.press("End", "+", "+")
    assert found.readout().startswith("epoch 10,000")
    assert found.problems == []
