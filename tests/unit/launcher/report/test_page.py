"""The web page of a report: complete without a network or a script, small, and with every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_runs import records_of

from launcher import report
from launcher.report import page as pages
from launcher.report.facts import facts
from launcher.report.page import page
from launcher.report.ranking import ranked
from launcher.report.run_record import read_all
from launcher.run.directory import RunDirectory
from launcher.run.record_types import as_seconds, as_time

WriteRun = Callable[..., RunDirectory]

STYLE = (Path(report.__file__).parent / "page.css").read_text()
VOID = {"meta"}  # elements without an end


class Parsed(HTMLParser):
    """The elements of a page: names with attributes, and the text inside of each kind."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(content)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)


def page_of(*runs: RunDirectory) -> str:
    read = read_all(runs)
    return page([facts(run) for run in read], ranked(read), "launcher report", "now")


def test_the_page_has_the_result_the_recipe_and_the_numbers(write_run: WriteRun) -> None:
    parsed = Parsed(page_of(write_run()))
    assert "90.00 %" in parsed.texts["b"]
    assert "86.4 to 92.7 %" in parsed.texts["span"]
    assert "is the uncertainty that comes from the number of val images." in "".join(parsed.texts["p"])
    assert "resnet20, 10 classes" in parsed.texts["dd"]
    assert "peak 0.025 = 0.1 x 64 / 256, warm-up 2 epochs, cosine decay" in parsed.texts["dd"]
    assert {"Top-1 accuracy", "Loss", "Learning rate", "Throughput"} <= set(parsed.texts["h3"])
    assert "67.50 %" in parsed.texts["td"]  # of the evaluation after step 15
    assert any("python -m launcher.train" in line for line in parsed.texts["pre"])
    drawings = [attributes for name, attributes in parsed.elements if name == "svg" and attributes.get("role") == "img"]
    identities = {attributes["id"] for _, attributes in parsed.elements if "id" in attributes}
    assert len(drawings) == 8
    for drawing in drawings:
        assert {*str(drawing["aria-labelledby"]).split()} <= identities


def test_the_page_asks_for_nothing_and_lets_only_its_own_script_run(write_run: WriteRun) -> None:
    content = page_of(write_run(), write_run("other"))
    parsed = Parsed(content)
    for name, attributes in parsed.elements:
        assert name not in ("link", "img", "iframe", "object", "form")
        assert not {"src", "style"} & attributes.keys()
        assert not any(key.startswith("on") for key in attributes)
        assert str(attributes.get("href", "#")).startswith("#")
    assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", content)
    policy = next(attributes["content"] for _, attributes in parsed.elements if "http-equiv" in attributes)
    script = content[content.rindex("<script>") + len("<script>") : content.rindex("</script>")]
    for source in (script, STYLE):
        assert base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() in str(policy)
    assert str(policy).startswith("default-src 'none'")


def test_texts_of_a_run_are_escaped(write_run: WriteRun) -> None:
    evil = "</script><script>alert(1)</script><b>&"
    warning = {"kind": "event", "event": "warning", "step": 1, "detail": {"text": evil}}
    train = {"kind": "train", "step": 1, "epoch": 0.1, "loss": 1.0}
    run = write_run("<i>x", [warning, train], finish=False)
    run.end_attempt(1, 76, f"WorkerLost: {evil}", 1)
    run.incident_summary(1).parent.mkdir(parents=True)
    run.incident_summary(1).write_text(evil)
    run.write_environment({"host": evil})
    content = page_of(run)
    assert content.count("<script") == content.count("</script>") == 2
    assert "<i>x" not in content
    parsed = Parsed(content)
    assert evil in "".join(parsed.texts["pre"])
    assert evil in "".join(parsed.texts["li"])


def test_the_data_of_the_script_is_json_with_the_same_numbers(write_run: WriteRun) -> None:
    content = page_of(write_run(), write_run("<!--x"))
    start = content.index('id="data">') + len('id="data">')
    data = json.loads(content[start : content.index("</script>", start)])
    assert data["runs"] == ["run", "<!--x"]
    [top1] = [chart for chart in data["charts"] if chart["id"] == "top1"]
    assert top1["lines"][0]["mean"] == [0.225, 0.45, 0.675, 0.9]
    assert len(top1["lines"][0]["bars"]) == 4


def test_a_page_that_is_too_large_gets_fewer_points(write_run: WriteRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(records=records_of(1600, every=400))
    assert "a point stands for up to 2 records" in page_of(run)
    monkeypatch.setattr(pages, "MAX_BYTES", 400_000)
    content = page_of(run)
    assert len(content) < 400_000
    assert re.search(r"a point stands for up to [3-9] records", content)


def test_an_attempt_without_a_recorded_end_is_marked_at_its_last_step(write_run: WriteRun) -> None:
    content = page_of(write_run(finish=False))
    start = content.index('id="data">') + len('id="data">')
    data = json.loads(content[start : content.index("</script>", start)])
    [mark] = data["marks"]
    assert data["positions"][mark["positions"]]["step"][mark["at"]] == 20


def test_the_time_of_an_attempt_says_where_it_begins(write_run: WriteRun) -> None:
    run = write_run()
    assert " s: started " in "".join(Parsed(page_of(run)).texts["p"])
    lines = [json.loads(line) for line in run.attempts_file.read_text().splitlines()]
    lines[0]["command_began"] = as_time(as_seconds(lines[0]["time"]) - 20)
    run.attempts_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert " s since the command: started " in "".join(Parsed(page_of(run)).texts["p"])


def test_a_run_that_never_started_has_a_page(write_run: WriteRun) -> None:
    run = write_run(records=[], finish=False)
    run.attempts_file.unlink()
    parsed = Parsed(page_of(run))
    assert "No step is recorded: there are no curves." in parsed.texts["p"]
    assert "No attempt has started yet." in parsed.texts["p"]


def test_damaged_numbers_leave_a_page(write_run: WriteRun) -> None:
    records = records_of()
    for number, value in enumerate((1e308, -1e308, 5e-324, 10**19, None)):
        records[1 + number] |= {"loss": value, "step_time_s": value, "learning_rate": value, "gradient_norm": value}
    records[-1] |= {"top1": 7.0, "loss": 1e308, "time_s": 1e308, "num_samples": 0}
    records.append({"kind": "event", "event": "checkpoint", "step": 20, "detail": {"stalled_s": "long"}})
    records.append({"kind": "event", "event": "started", "step": 3, "detail": {"num_samples": "many"}})
    run = write_run(records=records)
    run.write_environment({"packages": [1], "git": "none", "host": {"name": 1}})
    run.write_config("schema: 1\nmodel: resnet\nbatch: {size: big}\nschedule: {base_lr: [1]}\nevaluate: 3\n")
    parsed = Parsed(page_of(run, write_run("other")))
    assert "Loss" in parsed.texts["h3"]


# --- colours


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[position : position + 2], 16) / 255 for position in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_have_the_contrast_of_wcag_aa(theme: str) -> None:
    light = colours(STYLE[: STYLE.index("@media")])
    dark = colours(STYLE[STYLE.index("@media") : STYLE.index("* {")])
    found = light if theme == "light" else light | dark
    assert light.keys() == dark.keys()
    lines = [f"s{number}" for number in range(8)]
    for back in ("back", "panel"):
        for text in ("text", "muted", "link"):
            assert contrast(found[text], found[back]) >= 4.5, (text, back)
    assert contrast(found["text"], found["warn-back"]) >= 4.5
    for filled in (*lines, "good", "warn", "bad", "idle"):  # with text on them, and as lines
        assert contrast(found["on"], found[filled]) >= 4.5, filled
        assert contrast(found[filled], found["back"]) >= 3, filled
    assert contrast(found["axis"], found["back"]) >= 3
