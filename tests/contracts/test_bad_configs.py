"""The message for each mistake in a config: file, line, key, what was found, what is allowed; and the exit code.

Each case is a complete file, as a user would write it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from launcher.config import load as config
from launcher.errors import ConfigError, LauncherError, UsageError
from launcher.recovery.faults import rule_for

GOOD = """\
schema: 1
name: good
storage: /runs
data: {root: /data, num_samples: 1000}
batch: {size: 64}
duration: 10 epochs
optimizer: {name: sgd, momentum: 0.9}
schedule: {base_lr: 0.1, warmup: 1 epoch}
workers: 2
"""


@dataclass(frozen=True)
class Case:
    """A mistake: `change` replaces text of the good config; an empty old text adds a line at the end."""

    name: str
    change: tuple[str, str] = ("", "")
    overrides: list[str] = field(default_factory=list)
    line: int | None = None  # None: the command line
    key: str = ""
    found: str = ""
    allowed: str = ""
    code: int = 78

    def text(self) -> str:
        old, new = self.change
        assert old in GOOD
        return GOOD.replace(old, new, 1) if old else f"{GOOD}{new}\n"


def case(name: str, old: str, new: str, line: int, key: str, found: str, allowed: str) -> Case:
    return Case(name, (old, new), [], line, key, found, allowed)


def override(name: str, text: str, key: str, found: str, allowed: str, code: int = 78) -> Case:
    return Case(name, ("", ""), [text], None, key, found, allowed, code)


CASES = [
    case("unknown key", "momentum", "momentun", 7, "optimizer.momentun", "unknown key", "Did you mean momentum?"),
    case("unknown section", "", "optimiser: {}", 10, "optimiser", "unknown key", "Did you mean optimizer?"),
    case(
        "key of another section", "", "num_micro_batches: 2", 10, "num_micro_batches", "unknown", "mean batch.num_micro"
    ),
    case("missing key", "{size: 64}", "{num_micro_batches: 1}", 5, "batch.size", "missing", "a whole number"),
    case("missing section", "batch: {size: 64}\n", "", 1, "batch", "missing", "size, num_micro_batches"),
    case("another schema", "schema: 1", "schema: 2", 1, "schema", "found 2", "1, the version that this launcher reads"),
    case("schema as text", "schema: 1", "schema: '1'", 1, "schema", 'found "1" (a string)', "1, the version"),
    case("schema as a boolean", "schema: 1", "schema: true", 1, "schema", "found true", "1, the version"),
    case("no schema", "schema: 1\n", "", 1, "schema", "missing", "1"),
    case("world size above the batch", "workers: 2", "workers: 65", 9, "workers", "found 65", "at most 64"),
    case(
        "warm-up above the run",
        "1 epoch}",
        "11 epochs}",
        8,
        "schedule.warmup",
        "found 11 epochs",
        "at most the duration",
    ),
    case("warm-up in samples", "1 epoch}", "10001 samples}", 8, "schedule.warmup", "found 10001 samples", "10 epochs"),
    case(
        "two optimizers", "{name: sgd, momentum: 0.9}", "[sgd, lars]", 7, "optimizer", '["sgd", "lars"]', "its name, or"
    ),
    case("text for a number", "0.9", "high", 7, "optimizer.momentum", 'found "high" (a string)', "a number"),
    case("quoted number", "0.9", "'0.9'", 7, "optimizer.momentum", 'found "0.9" (a string)', "Did you mean 0.9?"),
    case("boolean for a number", "0.9", "true", 7, "optimizer.momentum", "found true (a boolean)", "a number"),
    case("nothing for a section", "{size: 64}", "", 5, "batch", "found nothing", "a section with the keys size"),
    case("fraction for a count", "size: 64", "size: 64.5", 5, "batch.size", "found 64.5", "a whole number"),
    case("octal-looking number", "size: 64", "size: 064", 5, "batch.size", 'found "064"', "Did you mean 64?"),
    case(
        "yes for true",
        "",
        "deterministic: yes",
        10,
        "deterministic",
        'found "yes"',
        "true or false. Did you mean true?",
    ),
    case("key like no other", "", "x: 1", 10, "x", "unknown key", "storage"),
    case(
        "a list too long", "/data,", "/data, crop_area: [0, 1, 2],", 4, "data.crop_area", "(a list of 3)", "2 numbers"
    ),
    case("not a number", "0.9", ".nan", 7, "optimizer.momentum", "found nan", "at least 0 and below 1"),
    case("endless LR", "0.1,", ".inf,", 8, "schedule.base_lr", "found inf", "a number above 0"),
    case("two LRs", "0.1,", "0.1, peak_lr: 3,", 8, "schedule.peak_lr", "both", "exactly one"),
    case("no LR", "base_lr: 0.1, ", "", 8, "schedule.peak_lr", "neither", "exactly one"),
    case("unknown unit", "10 epochs", "10 parsecs", 6, "duration", 'found "10 parsecs"', "epochs, steps or samples"),
    case("no unit", "10 epochs", "10", 6, "duration", "found 10 (a number)", "epochs, steps or samples"),
    case("a duration beyond all", "10 epochs", "1e999999999 epochs", 6, "duration", "1e999999999", "epochs, steps or"),
    case("span that divides not", "", "batch_norm: {span: 20}", 10, "batch_norm.span", "found 20", "nearest: 16 or 32"),
    case("unknown span", "", "batch_norm: {span: all}", 10, "batch_norm.span", 'found "all"', "global, worker"),
    case("unknown model", "", "model: resnet51", 10, "model.name", 'found "resnet51"', "Did you mean resnet"),
    case("unknown precision", "", "precision: fp32", 10, "precision", 'found "fp32"', "Did you mean float32?"),
    case("bad walltime", "", "cluster: {walltime: 4h}", 10, "cluster.walltime", 'found "4h"', "04:00:00"),
    case("walltime as a number", "", "cluster: {walltime: 4}", 10, "cluster.walltime", "found 4 (a number)", "text"),
    case("nodes that divide not", "", "cluster: {nodes: 3}", 9, "workers", "found 2", "nearest 3"),
    case("several GPUs", "", "resources: {gpus_per_worker: 8}", 10, "resources.gpus_per_worker", "found 8", "0 or 1"),
    case("range upside down", "workers: 2", "workers: 4..2", 9, "workers", "found 4..2", "the smaller number first"),
    case("half a range", "workers: 2", "workers: 2..", 9, "workers", 'found "2.."', "a range such as 2..4"),
    case("a range above the batch", "workers: 2", "workers: 2..65", 9, "workers", "found 65", "at most 64"),
    case("no address", "", "checkpoint: {mirror: /copy}", 10, "checkpoint.mirror", "/copy", "s3://BUCKET"),
    case(
        "nobody to notify",
        "",
        "notify: {no_progress_minutes: 5}",
        10,
        "notify.no_progress_minutes",
        "found 5",
        "webhook",
    ),
    case(
        "a secret in an address",
        "",
        "notify: {webhook: 'https://x.org/hook?key=abc'}",
        10,
        "notify.webhook",
        "a query",
        "notify.webhook_env: NAME",
    ),
    case(
        "a key in a mirror",
        "",
        "checkpoint: {mirror: 's3://KEY:SE/CRET@b'}",
        10,
        "checkpoint.mirror",
        "USER@",
        "mode 600",
    ),
    case(
        "a token in a command",
        "",
        "notify: {command: 'curl -H \"Authorization: Bearer abc\" https://x.org'}",
        10,
        "notify.command",
        "a token",
        "an environment variable",
    ),
    case("a password in a root", "root: /data", "root: 'https://me:w@x.org'", 4, "data.root", "USER@", "a folder"),
    case("a seed of many digits", "", f"seed: {'9' * 4000}", 10, "seed", "a number of 4000 digits", "a whole number"),
    case("a seed of many letters", "", f"seed: 0x{'f' * 4000}", 10, "seed", "a number of 4002 digits", "whole number"),
    case("half a number", "", "seed: 0x", 10, "seed", 'found "0x"', "a whole number"),
    case("a seed above 64 bits", "", "seed: 9223372036854775808", 10, "seed", "9223372036854775808", "of 64 bits"),
    case("a negative seed", "", "seed: -1", 10, "seed", "found -1", "from 0 to 9223372036854775807"),
    case("underscores", "size: 64", "size: 6_4", 5, "batch.size", 'found "6_4"', "Did you mean 64?"),
    case("a batch beyond all", "size: 64", "size: 1000000000000", 5, "batch.size", "found 1000", "to 2147483647"),
    case("a large picture", "/data,", "/data, resolution: 70000,", 4, "data.resolution", "found 70000", "8 to 65535"),
    case("an LR beyond all", "0.1,", "1e301,", 8, "schedule.base_lr", "more than 30 digits", "-1e+300 to 1e+300"),
    case("an LR beyond floats", "0.1,", "1e400,", 8, "schedule.base_lr", "found inf", "a number above 0"),
    case("steps beyond all", "10 epochs", "1e99 steps", 6, "duration", "1e99 steps", "at most 1e9 epochs or steps"),
    case(
        "an endless timeout",
        "",
        "faults: {hang_timeout_s: 1e10}",
        10,
        "faults.hang_timeout_s",
        "found 10000000000.0",
        "from 1 to 604800",
    ),
    case(
        "cores beyond all",
        "",
        "resources: {cpus_per_worker: 5000}",
        10,
        "resources.cpus_per_worker",
        "found 5000",
        "from 1 to 4096",
    ),
    case("unsafe name", "name: good", "name: ../good", 2, "name", 'found "../good"', "letters, digits"),
    case("object store", "/runs", "s3://bucket/runs", 3, "storage", "object store", "a folder that every node sees"),
    case("variable in a path", "/runs", "$SCRATCH/runs", 3, "storage", "$SCRATCH", "on the command line"),
    case(
        "option without effect",
        "0.9}",
        "0.9, epsilon: 0}",
        7,
        "optimizer.epsilon",
        "has no effect",
        "optimizer.name lars",
    ),
    case(
        "local workers where Ray may be used",
        "",
        "resources: {local_workers: 2}",
        10,
        "resources.local_workers",
        "has no effect",
        "only with place local; on the command line: place=auto resources.local_workers=1",
    ),
    case(
        "more local workers than images",
        "",
        "place: local\nresources: {local_workers: 65}",
        11,
        "resources.local_workers",
        "found 65, more than the 64 samples of a micro-batch",
        "at most 64",
    ),
    case(
        "a CUDA graph with local workers that share spans",
        "workers: 2",
        "workers: 1\nplace: local\nspeed: {cuda_graph: true}\nbatch_norm: {span: 64}\n"
        "resources: {local_workers: 2, gpus_per_worker: 1}",
        11,
        "speed.cuda_graph",
        "found true with batch norm whose statistics are exchanged",
        "false; or a batch_norm.span that lies on one worker",
    ),
    case(
        "DALI's buffers on a CPU",
        "data: {",
        "data: {dali: {affinity: true}, ",
        4,
        "data.dali.affinity",
        "found true, which has no effect",
        "only with resources.gpus_per_worker 1",
    ),
    case("duplicate key", "", "name: again", 10, "name", "given twice, first in line 2", "each key once"),
    case("duplicate inner key", "0.9}", "0.9, name: lars}", 7, "optimizer.name", "given twice", "each key once"),
    case("python object", "/runs", "!!python/object:os.x {}", 3, "storage", "!!python/object:os.x", "plain values"),
    case("unknown tag", "/runs", "!env RUNS", 3, "storage", "tag !env", "plain values"),
    case("number as a key", "", "10: epochs", 10, "", "found the key '10'", "keys that are text"),
    case("tabs", "{size: 64}", "\n\tsize: 64", 6, "", "a tab", "use spaces; YAML does not allow tabs"),
    case("open bracket", "size: 64}", "size: 64", 6, "", "this is not YAML", "key: value"),
    case("two documents", "workers: 2", "---\nworkers: 2", 9, "", "a second document", "one document in a file"),
    case("empty file", GOOD, "", 1, "", "the file is empty", "key: value"),
    case("only a list", GOOD, "- schema\n- name\n", 1, "", "a list of 2", "key: value"),
    case("only text", GOOD, "schema 1\n", 1, "", '"schema 1" (a string)', "key: value"),
    case("alias to itself", "size: 64", "size: &x [*x]", 5, "batch.size[0]", "aliases expand", "written out"),
    override("a value that is not in range", "optimizer.momentum=1.5", "optimizer.momentum", "found 1.5", "below 1"),
    override(
        "a key that is not there", "optimizer.momentun=0.9", "optimizer.momentun", "unknown key", "mean momentum?"
    ),
    override("a section that is not there", "optimiser.momentum=0.9", "optimiser", "unknown key", "mean optimizer?"),
    override("a place that is not there", "place=mars", "place", 'found "mars"', "auto, ray, local"),
    override("a colon in a text", "notify.command=say a: b", "notify.command", "found a section", "text in quotes"),
    override("a section's key gone", "batch.size=null", "batch.size", "found nothing (null)", "a whole number"),
    override("no equals sign", "optimizer.momentum", "optimizer.momentum", "not an override", "key=value", code=64),
    override("no value", "workers=", "workers", "no value", "workers=VALUE", code=64),
    override("a value that is not YAML", "workers=[1", "workers", "not YAML", "", code=64),
    override(
        "a section that would be lost", "optimizer=lars", "optimizer", "other keys", "optimizer.KEY=VALUE", code=64
    ),
    override("a key below a number", "workers.x=1", "workers", "not a section", "workers=VALUE", code=64),
]

CLASSES: dict[int, type[LauncherError]] = {64: UsageError, 78: ConfigError}


def assert_readable(message: str) -> None:
    """The message has no traceback, no address of an object, and no text or link of a library."""
    assert not re.search(r"Traceback|File \"|line \d+, in |0x[0-9a-f]{8}|pydantic|errors\.|yaml\.|https?://", message)
    assert not re.search(r"Input should be|validation error|type=", message)


@pytest.mark.parametrize("bad", CASES, ids=lambda bad: bad.name)
def test_a_mistake_is_explained(bad: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text(bad.text(), encoding="utf-8")
    with pytest.raises(LauncherError) as caught:
        config.load("my.yaml", bad.overrides)
    message = str(caught.value)
    assert type(caught.value) is CLASSES[bad.code]
    assert rule_for(caught.value).exit_code == bad.code
    place = f"my.yaml:{bad.line}" if bad.line else f"command line: {bad.overrides[0]}"
    key = f"{bad.key}: " if bad.key and bad.code == 78 else ""
    [line] = [line for line in message.splitlines() if line.startswith(f"{place}: {key}")]
    assert bad.key in line
    before, _, after = line.removeprefix(f"{place}: ").partition("Allowed: ")
    assert bad.found in before
    assert bad.allowed in after
    assert_readable(message)


def test_the_config_that_the_cases_change_is_good(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(GOOD, encoding="utf-8")
    assert config.load(path).name == "good"


def test_the_cases_have_different_names() -> None:
    names = [bad.name for bad in CASES]
    assert len(names) == len(set(names)) >= 25


def test_a_missing_config_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        config.load(tmp_path / "digit.yaml")
    assert rule_for(caught.value).exit_code == 64
    expected = f"{tmp_path}/digit.yaml: there is no such file. Allowed: the path of a YAML config."
    assert str(caught.value) == f"{expected} Did you mean {tmp_path}/digits.yaml?"


def test_a_path_through_a_file_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match=r"file/x\.yaml: cannot be read: Not a directory\. Allowed: "):
        config.load(tmp_path / "file" / "x.yaml")


def test_a_folder_is_not_a_config(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(GOOD, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(tmp_path)
    assert rule_for(caught.value).exit_code == 78
    assert str(caught.value) == f"{tmp_path}: this is a folder. Allowed: a YAML file (in this folder: a.yaml)"


def test_bytes_that_are_not_utf8_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(GOOD.replace("good", "gööd").encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value) == f"{path}:2: byte 0xf6 is not UTF-8. Allowed: text in UTF-8"


def test_a_data_file_is_not_read_completely() -> None:
    with pytest.raises(ConfigError, match="more than a megabyte"):
        config.load("/dev/zero")


def test_several_mistakes_are_reported_one_per_line(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(GOOD.replace("0.9", "2").replace("workers: 2", "workers: 65"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert sorted(line.partition(": ")[0] for line in str(caught.value).splitlines()) == [f"{path}:7", f"{path}:9"]
