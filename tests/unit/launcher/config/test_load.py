"""A config file becomes a RunConfig with its defaults filled in and its paths absolute."""

from __future__ import annotations

import dataclasses
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config import json_schema, rules, yaml_text
from launcher.config import load as config
from launcher.config.dotted_keys import flatten
from launcher.config.schema import RunConfig, Workers
from launcher.errors import (
    ClusterUnavailable,
    ConfigError,
    LauncherError,
    Problem,
    UsageError,
    UserCodeError,
    WorkerLost,
)
from launcher.exit_codes import ExitCode
from launcher.recovery.faults import rule_for
from resnet_dist.errors import DataError
from resnet_dist.recipe import percentages
from resnet_dist.recipe.durations import Duration
from resnet_dist.recipe.schema import Recipe, plain

MINIMAL = """\
schema: 1
name: small
storage: runs
data: {root: images}
batch: {size: 64}
duration: 3 epochs
schedule: {base_lr: 0.1}
"""
MINIMAL_DATA: dict[str, Any] = {
    "schema": 1,
    "name": "small",
    "storage": "runs",
    "data": {"root": "images"},
    "batch": {"size": 64},
    "duration": "3 epochs",
    "schedule": {"base_lr": 0.1},
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_config(text: str) -> Path:
        path = tmp_path / "x.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_config


def problems_of(load: Callable[[], RunConfig]) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load()
    return list(caught.value.problems)


def test_what_is_not_given_has_the_documented_defaults(write: Write) -> None:
    run = config.load(write(MINIMAL))
    assert (run.place, run.workers, run.cluster.nodes, run.cluster.walltime) == ("auto", Workers(1, 1), 1, None)
    assert (run.resources.gpus_per_worker, run.resources.cpus_per_worker) == (0, 1)
    assert (run.checkpoint.every, run.checkpoint.keep) == (Duration.parse("1 epoch"), 3)
    assert (run.faults.max_failures, run.log.every_steps, run.log.tensorboard) == (3, 10, True)
    assert (run.model.name, run.optimizer.name, run.precision) == ("resnet50", "sgd", "float32")


def test_a_whole_number_is_a_number_and_a_list_is_a_tuple(write: Write) -> None:
    overrides = ["schedule.decay=step", "schedule.milestones=[1 epoch, 2 epochs]", "data.crop_area=[1, 1]"]
    run = config.load(write(MINIMAL), [*overrides, "schedule.base_lr=1"])
    assert run.schedule.milestones == (Duration.parse("1 epoch"), Duration.parse("2 epochs"))
    assert repr((run.data.crop_area, run.schedule.base_lr)) == "((1.0, 1.0), 1.0)"


def test_a_name_stands_for_a_section(write: Write) -> None:
    run = config.load(write(MINIMAL + "optimizer: lars\nmodel: my_models.wide:build\nengine: ddp\n"))
    assert (run.optimizer.name, run.model.name, run.engine.name) == ("lars", "my_models.wide:build", "ddp")


def test_the_recipe_of_a_run_is_the_recipes_fields_alone(write: Write) -> None:
    run = config.load(write(MINIMAL))
    recipe = run.recipe()
    assert type(recipe) is Recipe
    for part in dataclasses.fields(Recipe):
        assert getattr(recipe, part.name) == getattr(run, part.name)


def test_relative_paths_are_relative_to_the_configs_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(MINIMAL + "model: {weights: ../w.pt}\n")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.setenv("HOME", "/home/ada")
    run = config.load(f"{tmp_path.name}/x.yaml", ["data.root=~/images"])
    assert run.storage == str(tmp_path / "runs")
    assert run.data.root == "/home/ada/images"
    assert run.model.weights == str(tmp_path.parent / "w.pt")


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("s3://bucket/images/", "s3://bucket/images"),
        ("hf://datasets/org/name", "hf://datasets/org/name"),
        ("memory://images", "memory://images"),
        ("file:///images", "/images"),
    ],
)
def test_images_may_be_below_an_address(write: Write, given: str, taken: str) -> None:
    run = config.load(write(MINIMAL), [f"data.root={given}"])
    assert run.data.root == taken


@pytest.mark.parametrize("root", ["s3://", "S3://bucket", "s3:///folder", "file://host/images", "s3://$BUCKET/images"])
def test_an_address_that_names_nothing_is_refused(write: Write, root: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [f"data.root={root}"]))
    assert problem.key == "data.root"


def test_a_cache_for_images_on_a_disk_is_refused(write: Write) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), ["data.cache.max_gib=5", "data.root=/images"]))
    assert problem.key == "data.cache.max_gib"
    assert "s3://bucket/folder" in problem.allowed


def test_paths_of_data_are_relative_to_the_config(write: Write, tmp_path: Path) -> None:
    keys = ["data.root=s3://b/c", "data.classes=c.txt", "data.known_bad=../b.txt", "data.cache.folder=cache"]
    run = config.load(write(MINIMAL), [*keys, "data.on_error=replace"])
    assert (run.data.classes, run.data.known_bad, run.data.cache.folder) == (
        str(tmp_path / "c.txt"), str(tmp_path.parent / "b.txt"), str(tmp_path / "cache"),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("s3://bucket/runs", "a folder that every node sees"),
        ("$SCRATCH/runs", "on the command line"),
        ("~nobody-of-this-name/runs", "an absolute path"),
        ("' '", "the path of a file or folder"),
    ],
)
def test_a_path_that_would_be_taken_literally_is_refused(write: Write, storage: str, said: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL.replace("runs", storage))))
    assert problem.key == "storage"
    assert said in problem.allowed


@pytest.mark.parametrize(
    "storage",
    [
        "/tmp/ray/session_2026-01-02_03-04-05_678901_42/runs",
        "/tmp/ray/session_latest/runs",
        "/scratch/ray/session_2026-01-02_03-04-05_678901_42",
        "/elsewhere/session_2026-01-02_03-04-05_678901_42/runtime_resources/working_dir_files/x/runs",
        "/mytmp/ray/session_7/runs",
        "/mytmp/session_7/runs",
    ],
)
def test_storage_in_a_session_folder_of_ray_is_refused(
    write: Write, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/mytmp")
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [f"storage={storage}"]))
    assert problem.key == "storage"
    assert "absolute path" in problem.allowed


def test_storage_beside_a_session_folder_is_taken(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/mytmp")
    for storage in ("/mytmp/runs", "/data/ray/runs", "/data/session_3/runs"):
        assert config.load(write(MINIMAL), [f"storage={storage}"]).storage == storage


def test_relative_storage_of_a_config_that_ray_unpacked_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ray" / "session_2026-01-02_03-04-05_678901_42" / "working_dir_files"
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_text(MINIMAL, encoding="utf-8")
    (tmp_path / "link").symlink_to(folder)
    for path in (folder / "x.yaml", tmp_path / "link" / "x.yaml"):
        assert [problem.key for problem in problems_of(lambda path=path: config.load(path))] == ["storage"]


LAUNCHER_RULES = [
    ("name=a b", "name"),
    ("name=../a", "name"),
    ("name=-a", "name"),
    ("workers=0", "workers"),
    ("cluster.nodes=0", "cluster.nodes"),
    ("resources.gpus_per_worker=2", "resources.gpus_per_worker"),
    ("resources.cpus_per_worker=0", "resources.cpus_per_worker"),
    ("checkpoint.keep=0", "checkpoint.keep"),
    ("checkpoint.every=0 steps", "checkpoint.every"),
    ("faults.max_failures=-1", "faults.max_failures"),
    ("faults.max_skips=0", "faults.max_skips"),
    ("faults.max_node_failures=0", "faults.max_node_failures"),
    ("faults.hang_timeout_s=0.5", "faults.hang_timeout_s"),
    ("faults.start_timeout_s=.inf", "faults.start_timeout_s"),
    ("faults.on_nonfinite=ignore", "faults.on_nonfinite"),
    ("checkpoint.keep_best=-1", "checkpoint.keep_best"),
    ("checkpoint.keep_every=0 epochs", "checkpoint.keep_every"),
    ("checkpoint.max_failures=-1", "checkpoint.max_failures"),
    ("checkpoint.mirror=/copies", "checkpoint.mirror"),
    ('notify.command="page \'me"', "notify.command"),
    ("notify.webhook=example.org", "notify.webhook"),
    ("notify.webhook=https://example.org/hook?token=1", "notify.webhook"),
    ("notify.webhook_env=PAGER-URL", "notify.webhook_env"),
    ("notify.webhook=https://hooks.example.org/services/T024BE7LH/qX7wJ2mKp9LdR4sVtY8zN3cF", "notify.webhook"),
    ("notify.command='curl https://me:word@example.org/'", "notify.command"),
    ("notify.command='curl --url=https://example.org/?key=1'", "notify.command"),
    ("checkpoint.mirror=s3://key:secret@bucket/copies", "checkpoint.mirror"),
    ("notify.no_progress_minutes=5", "notify.no_progress_minutes"),
    ("preemption.notice_s=0", "preemption.notice_s"),
    ("log.every_steps=0", "log.every_steps"),
    ("log.layers_every_steps=0", "log.layers_every_steps"),
    ("cluster.walltime='4:60:00'", "cluster.walltime"),
    ("cluster.max_requeues=-1", "cluster.max_requeues"),
    ("cluster.walltime=1-00:00:00", "cluster.walltime"),
    ("cluster.walltime='00:00:00'", "cluster.walltime"),
    ("precision=tf32", "precision"),
]


@pytest.mark.parametrize(("override", "key"), LAUNCHER_RULES)
def test_the_launchers_own_rules_hold(write: Write, override: str, key: str) -> None:
    problems = problems_of(lambda: config.load(write(MINIMAL), [override]))
    places = (f"command line: {override}", f"command line: {key}=...")  # the second: the value may be secret
    assert [problem.key for problem in problems] == [key]
    assert problems[0].place in places


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("engine=zero", "engine.name zero, whose gradients are partitioned"),
        ("engine={name: zero, stage: 1}", "engine ddp, or zero with stage 0"),
        ("speed.compile=true", "speed.compile true, under which single layers cannot be observed"),
    ],
)
def test_layers_are_recorded_only_where_they_can_be_observed(write: Write, override: str, said: str) -> None:
    every = "log.layers_every_steps=10"
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [every, override]))
    assert problem.key == "log.layers_every_steps"
    assert said in str(problem)
    config.load(write(MINIMAL), [every, "engine={name: zero, stage: 0}"])


def test_the_best_checkpoints_are_not_kept_if_they_are_evaluated_later(write: Write) -> None:
    overrides = ["checkpoint.keep_best=2", "evaluate.beside=true"]
    [problem] = problems_of(lambda: config.load(write(MINIMAL), overrides))
    assert (problem.key, problem.allowed) == ("checkpoint.keep_best", "0, or evaluate.beside false")
    for override in overrides:
        config.load(write(MINIMAL), [override])


def test_every_node_has_the_same_number_of_workers(write: Write) -> None:
    assert config.load(write(MINIMAL), ["workers=6", "cluster.nodes=3"]).workers == Workers(6, 6)
    [problem] = problems_of(lambda: config.load(write(MINIMAL), ["workers=7", "cluster.nodes=3"]))
    assert (problem.key, problem.allowed) == ("workers", "the same number of workers on every node: nearest 6 or 9")


def test_a_range_of_workers_is_one_value(write: Write) -> None:
    run = config.load(write(MINIMAL), ["workers=2..4", "cluster.nodes=2"])
    assert (run.workers.least, run.workers.most, run.workers.elastic) == (2, 4, True)
    assert "workers: 2..4" in config.to_yaml(run)
    [problem] = problems_of(lambda: config.load(write(MINIMAL), ["workers=2..65"]))
    assert problem.found.startswith("found 65")


def test_a_rule_that_both_ends_of_a_range_break_is_reported_once(write: Write) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), ["workers=2..4", "schedule.warmup=9 epochs"]))
    assert problem.key == "schedule.warmup"


def test_a_duration_may_be_left_out_or_given(write: Write) -> None:
    assert config.load(write(MINIMAL)).checkpoint.keep_every is None
    run = config.load(write(MINIMAL), ["checkpoint.keep_every=10 epochs"])
    assert run.checkpoint.keep_every == Duration.parse("10 epochs")


def test_the_data_sets_size_reaches_the_recipes_rules(write: Write) -> None:
    run = config.load(write(MINIMAL), ["schedule.warmup=100 steps"])
    assert rules.problems(run) == []
    assert [problem.key for problem in rules.problems(run, num_samples=640)] == ["schedule.warmup"]


def test_all_mistakes_are_reported_together(write: Write) -> None:
    text = MINIMAL.replace("size: 64", "sise: 64").replace("0.1", "high").replace("3 epochs", "3 parsecs") + "x: 1\n"
    problems = problems_of(lambda: config.load(write(text)))
    assert sorted(problem.key for problem in problems) == sorted(
        ["x", "batch.sise", "batch.size", "duration", "schedule.base_lr"]
    )


def test_a_message_shows_ten_mistakes_and_counts_the_rest(write: Write) -> None:
    text = MINIMAL + "".join(f"unknown_{number}: 1\n" for number in range(13))
    with pytest.raises(ConfigError) as caught:
        config.load(write(text))
    assert len(caught.value.problems) == 13
    assert str(caught.value).splitlines()[9:] == [str(caught.value.problems[9]), "... and 3 more"]


@pytest.mark.parametrize(
    ("override", "suggestion"),
    [
        ("optimizer.momentun=0.9", "momentum"),
        ("num_micro_batches=2", "batch.num_micro_batches"),
        ("momentum=0.9", "batch_norm.momentum or optimizer.momentum"),
        ("data.seed=1", "seed"),
        ("batch.size=064", "64"),
        ("batch.size=1e2", "100"),
        ("schedule.base_lr='0.5'", "0.5"),
        ("precision=fp32", "float32"),
        ("precision=bf16", "bfloat16"),
        ("precision=flaot64", "float64"),
        ("deterministic=yes", "true"),
        ("data.flip=0", "false"),
        ("name=2026", '"2026"'),
        ("qqqq=1", ""),
    ],
)
def test_a_message_names_what_was_probably_meant(write: Write, override: str, suggestion: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [override]))
    assert problem.suggestion == suggestion


def test_a_mapping_makes_the_same_run_as_its_file(write: Write, tmp_path: Path) -> None:
    assert config.from_mapping(MINIMAL_DATA, tmp_path) == config.load(write(MINIMAL))
    objects = {**MINIMAL_DATA, "duration": Duration.parse("3 epochs"), "storage": Path("runs")}
    assert config.from_mapping(objects, tmp_path) == config.load(write(MINIMAL))


def test_a_mapping_takes_overrides_as_text_or_as_values(tmp_path: Path) -> None:
    as_text = config.from_mapping(MINIMAL_DATA, tmp_path, ["workers=2", "batch.size=8"])
    as_values = config.from_mapping(MINIMAL_DATA, tmp_path, {"workers": 2, "batch": {"size": 8}})
    assert as_text == as_values
    assert (as_text.workers, as_text.batch.size) == (Workers(2, 2), 8)
    assert MINIMAL_DATA["batch"] == {"size": 64}


def test_a_mistake_in_a_mapping_is_named_by_its_key(tmp_path: Path) -> None:
    [problem] = problems_of(lambda: config.from_mapping({**MINIMAL_DATA, "workers": "2"}, tmp_path))
    assert (
        str(problem)
        == 'config: workers: found "2" (a string). Allowed: a whole number, or a range such as 2..4. Did you mean 2?'
    )


@given(
    workers=st.integers(1, 8) | st.sampled_from(["2..4", "1..64"]),
    epochs=st.integers(1, 10**9).map(lambda thousandths: Duration.parse(f"{thousandths / 1000!r} epochs")),
    momentum=st.floats(0, 1, exclude_max=True),
    span=st.sampled_from(["global", "worker", 1, 16, 64]),
    arguments=st.dictionaries(st.text("abc", min_size=1), st.sampled_from(["yes", "1e-4", 1, 1.5, None, "010", [1]])),
    walltime=st.sampled_from([None, "00:30:00", "12:00:00", "100:00:00"]),
)
@settings(deadline=None, max_examples=50)
def test_a_resolved_config_reads_back_as_the_same_run(
    tmp_path_factory: pytest.TempPathFactory, workers: int | str, epochs: Duration, momentum: float, span: Any,
    arguments: dict[str, Any], walltime: str | None,
) -> None:  # fmt: skip
    data = {
        **MINIMAL_DATA,
        "workers": workers,
        "duration": epochs,
        "optimizer": {"name": "my.optimizers:adam", "momentum": momentum, "arguments": arguments},
        "batch_norm": {"span": span},
        "cluster": {"walltime": walltime},
    }
    folder = tmp_path_factory.getbasetemp()
    run = config.from_mapping(data, folder)
    path = folder / "resolved.yaml"
    path.write_text(config.to_yaml(run), encoding="utf-8")
    assert config.load(path) == run


def test_a_resolved_config_begins_with_what_the_run_is_called(write: Write) -> None:
    lines = config.to_yaml(config.load(write(MINIMAL))).splitlines()
    assert [line.partition(":")[0] for line in lines[:5]] == ["schema", "name", "storage", "place", "workers"]


def test_the_json_schema_knows_the_keys_and_refuses_others() -> None:
    schema = json_schema.json_schema()
    assert set(schema["properties"]) == {part.name for part in dataclasses.fields(RunConfig)}
    assert set(schema["required"]) == {"schema", "name", "storage", "data", "batch", "duration", "schedule"}
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["BatchRecipe"]["additionalProperties"] is False
    assert schema["$defs"]["OptimizerRecipe"]["anyOf"][0] == {"type": "string"}
    assert schema["properties"]["duration"]["$ref"] == "#/$defs/Duration"


def test_the_json_schema_explains_every_key() -> None:
    schema = json_schema.json_schema()
    sections = [schema, *schema["$defs"].values()]
    properties = {
        key: value
        for section in sections
        for part in (section, *section.get("anyOf", []))
        for key, value in part.get("properties", {}).items()
    }
    assert len(properties) > 100
    sections_of = {
        key: schema["$defs"][value["$ref"].split("/")[-1]] for key, value in properties.items() if "$ref" in value
    }
    assert len(sections_of) > 20
    assert [key for key, value in properties.items() if not (value | sections_of.get(key, {})).get("description")] == []
    assert "between two evaluations" in schema["$defs"]["EvaluateRecipe"]["properties"]["every"]["description"]


KEYS = sorted(flatten(plain(config.from_mapping({**MINIMAL_DATA, "model": "my.models:net"}, "/"))))
ODD_NUMBERS = [
    *("0x", "0b", "0o", "0b101", "1_000", "-0", "-0.0", "+", "1e", "9" * 4000, "-" + "9" * 4000, "0x" + "f" * 4000),
    *("0.0000000001", "1e-400", "1e10", "1e18", "1e301", "1e400", ".inf", "-.inf", ".nan", "nan", "-1", "1e99 steps"),
    *("2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "1" + "0" * 40),
    *("999999999 epochs", "1e18 samples", "9" * 4000 + " steps", "1e-99 epochs", "999:59:59", "1..999999999"),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_number_that_a_run_accepts_is_finite_and_has_a_bound(write: Write, key: str) -> None:
    """Of 64 bits, in any key; only seeds and durations need more than 32."""
    for text in ODD_NUMBERS:
        try:
            run = config.load(write(MINIMAL), [f"{key}={text}"])
        except ConfigError:
            continue
        value = flatten(plain(run)).get(key)
        if type(value) is int:
            assert abs(value) < (2**63 if key == "seed" else 2**31)
        elif type(value) is float:
            assert abs(value) <= (7 * 24 * 3600 if key.endswith(("_s", "_minutes")) else 1e300)
        size = {"batch_size": run.batch.size, "num_samples": 2**31}
        assert run.duration.samples(**size) < 2**63


@given(
    st.sampled_from(KEYS),
    st.text(max_size=60) | st.sampled_from(ODD_NUMBERS) | st.from_regex(r"[-+0-9.eExob_:\[\]{} ]+"),
)
@settings(deadline=None, max_examples=300)
def test_any_text_in_any_key_makes_a_run_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, key: str, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    section, _, name = key.rpartition(".")
    data = {**MINIMAL_DATA, "storage": "/runs"}
    lines = [line for line in yaml_text.dump(data).splitlines() if not section or not line.startswith(f"{section}:")]
    path.write_text("\n".join([*lines, f"{section}: {{{name}: {text}}}" if section else f"{key}: {text}"]), "utf-8")
    for given_text, overrides in ((path.read_text("utf-8"), []), (MINIMAL, [f"{key}={text}"])):
        path.write_text(given_text, "utf-8")
        try:
            run = config.load(path, overrides)
        except (ConfigError, UsageError):
            continue
        path.write_text(config.to_yaml(run), "utf-8")
        assert config.load(path) == run


def test_synthetic_images_have_no_root_and_the_resolved_config_reads_back(write: Write) -> None:
    run = config.load(write(MINIMAL), ["data.source=synthetic", "data.num_samples=9", 'data.root=""'])
    assert run.data.root == ""
    assert config.load(write(config.to_yaml(run))) == run


def test_a_mistake_in_a_section_that_only_an_override_has_names_the_override(write: Write) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), ["optimiser.momentum=0.9"]))
    assert (problem.place, problem.key) == ("command line: optimiser.momentum=0.9", "optimiser")


@pytest.mark.parametrize(
    ("lines", "overrides", "place", "key", "beside"),
    [
        ("", ["cluster.nodes=3"], "command line: cluster.nodes=3", "workers", ""),
        ("workers: 2", ["cluster.nodes=3"], "x.yaml:8", "workers", " (see command line: cluster.nodes=3)"),
        ("cluster: {nodes: 3}", ["workers=2"], "command line: workers=2", "workers", "(see cluster.nodes in x.yaml:8)"),
        ("", ["schedule.warmup=9 epochs"], "command line: schedule.warmup=9 epochs", "schedule.warmup",
         " (see duration in x.yaml:6"),
        ("workers: 40", ["batch.size=32"], "x.yaml:8", "workers", " (see command line: batch.size=32)"),
        ("optimizer: {epsilon: 1}", ["optimizer.name=sgd"], "x.yaml:8", "optimizer.epsilon",
         " (see command line: optimizer.name=sgd)"),
        ("", ["schedule.decay=step"], "command line: schedule.decay=step", "schedule.milestones", ""),
    ],
)  # fmt: skip
def test_a_rule_over_several_keys_names_the_file_and_the_override(
    write: Write, lines: str, overrides: list[str], place: str, key: str, beside: str
) -> None:
    path = write(MINIMAL + lines)
    [problem] = problems_of(lambda: config.load(path, overrides))
    assert (problem.place.replace(str(path), "x.yaml"), problem.key) == (place, key)
    assert beside in problem.found.replace(str(path), "x.yaml")


SECRETS = [
    ("checkpoint.mirror=s3://AKIA1:ab/cd@bucket/runs", "with credentials in the environment"),
    ("checkpoint.mirror=s3://bucket/runs?key=ab/cd", "with mode 600"),
    ("notify.command='curl -H \"Authorization: Bearer ab/cd\" https://example.org'", "with mode 600"),
    ("notify.command=curl -u me:ab/cd https://example.org", "environment variable"),
    ("notify.webhook=https://example.org/hook?token=ab/cd", "notify.webhook_env"),
    ("notify.webhook=ftp://me:ab/cd@example.org", "notify.webhook_env"),
    ("data.root=s3://AKIA1:ab/cd@bucket/images", "a folder"),
    ("storage=https://me:ab/cd@example.org/runs", "a folder"),
    ("model.weights=https://me:ab/cd@example.org/weights.safetensors", "a folder"),
]


@pytest.mark.parametrize(("override", "allowed"), SECRETS)
def test_a_secret_is_refused_and_not_shown(write: Write, override: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(write(MINIMAL), [override])
    assert "ab/cd" not in str(caught.value)
    [problem] = caught.value.problems
    assert (problem.key, allowed in problem.allowed) == (override.partition("=")[0], True)


@given(st.from_regex(json_schema.DURATION_PATTERN) | st.text("0123456789.eE+-% epochstamlgr", max_size=14))
@settings(deadline=None)
def test_the_json_schemas_durations_are_those_that_can_be_read(text: str) -> None:
    try:
        Duration.parse(text)
        readable = True
    except ValueError:
        readable = False
    match = re.search(json_schema.DURATION_PATTERN, text)
    most = 100 if "%" in text else 1e9
    is_large = match is not None and (
        len(text) > 40 or float(text.replace("%", " ").split()[0]) > most or re.search(r"e[+-]?0*\d{3}", text, re.I)
    )
    assert (match is not None) == readable or is_large


# --- percentages


def test_a_part_of_the_run_is_a_duration_and_is_recorded_as_its_length(write: Write, tmp_path: Path) -> None:
    more = ["schedule.warmup=10 %", "evaluate.every=2.5%", "checkpoint={every: 50 %, keep_every: 100 %}"]
    run = config.load(write(MINIMAL), more)
    lengths = (run.schedule.warmup, run.evaluate.every, run.checkpoint.every, run.checkpoint.keep_every)
    assert [str(length) for length in lengths] == ["0.3 epochs", "0.075 epochs", "1.5 epochs", "3 epochs"]
    recorded = config.to_yaml(run)
    assert "warmup: 0.3 epochs" in recorded
    (tmp_path / "recorded.yaml").write_text(recorded)
    assert config.load(tmp_path / "recorded.yaml") == run
    longer = config.load(tmp_path / "recorded.yaml", ["duration=6 epochs"])
    assert str(longer.schedule.warmup) == "0.3 epochs"


def test_times_of_resolutions_are_durations_too(write: Write, tmp_path: Path) -> None:
    run = config.load(write(MINIMAL), ["data.progressive={0 %: 128, 50%: 160, 2 epochs: 192}"])
    assert {str(time): pixels for time, pixels in run.data.progressive.items()} == {
        "0 epochs": 128,
        "1.5 epochs": 160,
        "2 epochs": 192,
    }
    (tmp_path / "recorded.yaml").write_text(config.to_yaml(run))
    assert config.load(tmp_path / "recorded.yaml") == run
    assert config.from_mapping({**MINIMAL_DATA, "data": {"root": "x", "progressive": {"50 %": 96}}}, "/")


@pytest.mark.parametrize(
    ("parts", "found"),
    [
        ("{1 day: 128}", 'found "1 day"'),
        ("{101 %: 128}", 'found "101 %"'),
        ("{10 %: large}", 'found "large"'),
        ("{10 %: 128, 10%: 160}", "found one time twice in 10 %, 10%"),
        ("{10 %: 128, 0.3 epochs: 160}", "found one time twice in 10 %, 0.3 epochs"),
    ],
)
def test_other_times_of_resolutions_are_refused(write: Write, parts: str, found: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [f"data.progressive={parts}"]))
    assert problem.found.startswith(found)


@pytest.mark.parametrize("override", ["duration=50 %", "schedule.warmup=101 %", "evaluate.every=0 %", "duration=0 %"])
def test_what_is_no_part_of_a_run_is_refused_with_its_key(write: Write, override: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [override]))
    assert problem.key == override.partition("=")[0]
    assert problem.place == f"command line: {override}"


def test_text_of_a_percentage_is_the_number_that_it_names(write: Write) -> None:
    more = "stop_at: {top1: 75.9 %}\ndata: {root: images, crop_area: [8%, 100 %], evaluation_crop: 87.5 %}\n"
    lines = [line for line in MINIMAL.splitlines() if not line.startswith("data:")]
    run = config.load(write("\n".join(lines) + f"\n{more}"), ["optimizer.lr_factors={fc: 250 %}", "seed=1"])
    assert (run.stop_at.top1, run.data.crop_area, run.data.evaluation_crop) == (0.759, (0.08, 1.0), 0.875)
    assert run.optimizer.lr_factors == {"fc": 2.5}
    assert config.load(write(MINIMAL), ["stop_at.top1=66.6 %"]).stop_at.top1 == 0.666
    from_python = config.from_mapping({**MINIMAL_DATA, "ema": {"decay": "99.99 %"}}, "/")
    assert from_python.ema.decay == 0.9999


@pytest.mark.parametrize(
    "override",
    [
        *(
            "seed=50 %",
            "workers=50 %",
            "deterministic=100 %",
            "stop_at.top1=-5 %",
            "stop_at.top1=75.9",
            "stop_at.top1=x %",
        ),
        *("batch_norm.span=50 %", "stop_at.top1=101 %", "stop_at.top1=1e1 %"),
    ],
)
def test_a_percentage_is_for_numbers_with_a_fraction_alone(write: Write, override: str) -> None:
    [problem] = problems_of(lambda: config.load(write(MINIMAL), [override]))
    assert problem.key == override.partition("=")[0]


def test_the_json_schema_allows_percentages_where_the_config_does() -> None:
    schema = json_schema.json_schema()["$defs"]
    assert schema["EmaRecipe"]["properties"]["decay"]["anyOf"][0]["type"] == ["number", "string"]
    assert schema["EmaRecipe"]["properties"]["decay"]["anyOf"][0]["pattern"] == percentages.PATTERN
    assert schema["DataRecipe"]["properties"]["evaluation_crop"]["type"] == ["number", "string"]
    assert schema["EmaRecipe"]["properties"]["every_steps"]["type"] == "integer"
    assert re.search(schema["Duration"]["pattern"], "10 %")


def test_the_config_needs_neither_torch_nor_ray() -> None:
    script = "import launcher.config.load, sys; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("no such file"), 64),
        (ConfigError([Problem("x.yaml:1", "a", "found 1", "2")]), 78),
        (ClusterUnavailable("no head node after 600 s"), 69),
        (WorkerLost("node-3", 7, "killed by signal 9"), 76),
        (UserCodeError("my.models:build", "KeyError: 'x'"), 1),
        (LauncherError("a mistake of ours"), 70),
    ],
)
def test_an_error_keeps_its_message_and_attributes_between_processes(error: LauncherError, code: int) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__) == (str(error), error.__dict__)
    assert rule_for(copy).exit_code == code


def test_exit_codes_are_the_documented_ones() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "OK": 0,
        "USER_CODE": 1,
        "USAGE": 64,
        "DATA": 65,
        "UNAVAILABLE": 69,
        "INTERNAL": 70,
        "STOPPED": 75,
        "HARDWARE": 76,
        "CONFIG": 78,
        "DIVERGED": 79,
        "INTERRUPTED": 130,
    }


@pytest.mark.parametrize(
    ("error_path", "said"),
    [
        ("s3://bucket/a", "command line: data.root=s3://bucket/a: is missing"),
        ("s3://bucket/a/", "command line: data.root=s3://bucket/a: is missing"),
        ("s3://bucket/a/train", "command line: data.root=s3://bucket/a: s3://bucket/a/train: is missing"),
    ],
)
def test_an_override_is_not_repeated_by_the_error_about_it(write: Write, error_path: str, said: str) -> None:
    error = config.in_users_lines(DataError(error_path, "is missing"), write(MINIMAL), ["data.root=s3://bucket/a"])
    assert str(error) == said
