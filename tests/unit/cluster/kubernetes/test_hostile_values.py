"""Whatever a name, a path or a variable holds arrives unchanged as data, and nowhere as a part of a command."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.kubernetes.manifests import manifests, reader_job, to_yaml
from cluster.kubernetes.rules import problems
from cluster.profile import KubernetesProfile, StorageVolume
from cluster.spec import RunSpec

SIGNS = ["$(RAY_IP)", "$$", "$HOME", "`id`", "$(id)", "'", '"', "\\", ";", "&&", "#", "{{", "}}", "é", "on", "1e3", "x"]
OF_YAML = ["---", "!!python/object", "%", " ", "\n", "\r", "\t", ": ", "- ", "\u2028", "\x07"]
HOSTILE = st.lists(st.sampled_from(SIGNS + OF_YAML), min_size=1, max_size=8).map("".join)
THOROUGH = settings(deadline=None, max_examples=40)  # each writes and reads YAML, which takes a while
PROFILE = KubernetesProfile(image="training/launcher:1.0", storage=StorageVolume(claim="runs"))


def _as_kubernetes_sees_it(text: str) -> str:
    """The value of a variable or an argument: `$$` stands for `$`, and every `$(` that is left would be expanded."""
    assert "$(" not in text.replace("$$", "")
    return text.replace("$$", "$")


def _read_back(made: list[dict]) -> dict[str, dict]:
    return {manifest["kind"]: manifest for manifest in yaml.safe_load_all(to_yaml(made))}


@THOROUGH
@given(HOSTILE, HOSTILE, HOSTILE)
def test_hostile_values_of_a_run_and_a_site_arrive_unchanged(folder, value, title):
    storage = f"/{folder.replace(':', '')}"
    spec = RunSpec(name="rn50", config=f"title: {title!r}\n{title}", storage=storage, walltime_s=60)
    profile = dataclasses.replace(PROFILE, environment={"VALUE": value})
    read = _read_back(manifests(spec, profile))
    assert read["ConfigMap"]["data"]["config.yaml"] == spec.config
    job = read["RayJob"]["spec"]
    assert read["RayJob"]["metadata"]["annotations"]["resnet-launcher/run-directory"] == f"{storage.rstrip('/')}/rn50"
    for template in (
        job["rayClusterSpec"]["headGroupSpec"]["template"],
        job["rayClusterSpec"]["workerGroupSpecs"][0]["template"],
    ):
        container = template["spec"]["containers"][0]
        variables = {variable["name"]: variable["value"] for variable in container["env"]}
        assert _as_kubernetes_sees_it(variables["VALUE"]) == value
        assert storage in [mount["mountPath"] for mount in container["volumeMounts"]]
        assert "command" not in container


@THOROUGH
@given(HOSTILE, HOSTILE)
def test_the_drivers_command_is_the_same_whatever_a_run_is_called(folder, title):
    harmless = RunSpec(name="rn50", config="", storage="/runs", walltime_s=60)
    hostile = dataclasses.replace(harmless, config=title, storage=f"/{folder.replace(':', '')}")
    commands = {manifests(spec, PROFILE)[-1]["spec"]["entrypoint"] for spec in (harmless, hostile)}
    assert len(commands) == 1


@THOROUGH
@given(st.lists(HOSTILE, min_size=1, max_size=3))
def test_arguments_of_a_reader_arrive_unchanged_and_meet_no_shell(arguments):
    spec = RunSpec(name="rn50", config="", storage="/runs", walltime_s=60)
    container = _read_back([reader_job(spec, PROFILE, arguments)])["Job"]["spec"]["template"]["spec"]["containers"][0]
    assert [_as_kubernetes_sees_it(argument) for argument in container["args"]] == arguments
    assert container["command"] == ["python", "-m", "launcher"]


def _with_text(value: Any, text: str) -> Iterator[Any]:
    """Copies of `value` in which one text, at any depth, is `text`."""
    if isinstance(value, str):
        yield text
    elif isinstance(value, tuple):
        for number, item in enumerate(value):
            yield from ((*value[:number], other, *value[number + 1 :]) for other in _with_text(item, text))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from ({**value, name: other} for other in _with_text(item, text))
            yield {**value, text: item}
    elif dataclasses.is_dataclass(value):
        for part in dataclasses.fields(value):
            for other in _with_text(getattr(value, part.name), text):
                yield dataclasses.replace(value, **{part.name: other})


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=10).map("/{}".format) | st.text(max_size=10) | HOSTILE, st.data())
def test_whatever_text_is_accepted_anywhere_is_read_back(spec, everything, text, data):
    changed = [(other, everything) for other in _with_text(spec, text)]
    changed += [(spec, other) for other in _with_text(everything, text)]
    accepted = [(run, site) for run, site in changed if not problems(run, site)]
    run, site = data.draw(st.sampled_from(accepted))
    made = [*manifests(run, site), reader_job(run, site, [text])]
    assert list(yaml.safe_load_all(to_yaml(made).encode())) == made
