"""cluster/kubernetes/rules.py: runs and profiles that are invalid on Kubernetes, by the user's key."""

from __future__ import annotations

import dataclasses

import pytest

from cluster.kubernetes.rules import PROFILE, doubts, placeholders, problems
from cluster.profile import Pod, SecretVariable, StorageVolume, SubmitterPod, Toleration, Volume
from launcher.config.profiles import load_profile
from launcher.errors import ConfigError


def _keys(spec, profile, **options):
    return [problem.key for problem in problems(spec, profile, **options)]


def test_a_run_and_a_site_that_fit_have_no_problems(spec, profile, everything):
    assert problems(spec, profile) == []
    assert problems(spec, everything) == []


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"walltime_s": None}, "cluster.walltime"),
        ({"storage": "/shared:a"}, "storage"),
        ({"storage": "runs"}, "storage"),
        ({"data_root": "/data:1"}, "data.root"),
        ({"config": "x" * 1_000_001}, ""),
        ({"config": "a: \0"}, ""),
        ({"storage": "/runs\udcff"}, "storage"),
    ],
)
def test_what_is_wrong_with_a_run_has_the_configs_key_and_no_place(spec, profile, changed, key):
    found = problems(dataclasses.replace(spec, **changed), profile)
    assert key in [problem.key for problem in found]
    assert [problem.place for problem in found if problem.key == key] == [""]


def _volume(**changed):
    return dataclasses.replace(StorageVolume(claim="runs"), **changed)


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"image": "launcher"}, "image"),
        ({"image": "launcher:latest"}, "image"),
        ({"image": "Launcher:1"}, "image"),
        ({"image": "launcher:1 --privileged"}, "image"),
        ({"ray_version": "2.60"}, "ray_version"),
        ({"ray_version": "2.51.0"}, "ray_version"),
        ({"namespace": "a.b"}, "namespace"),
        ({"namespace": "a" * 64}, "namespace"),
        ({"operator_namespace": "Ray"}, "operator_namespace"),
        ({"service_account": "a_b"}, "service_account"),
        ({"priority_class": "High"}, "priority_class"),
        ({"runtime_class": "nvidia!"}, "runtime_class"),
        ({"image_pull_secrets": ("A",)}, "image_pull_secrets"),
        ({"storage": _volume(claim="Runs")}, "storage.claim"),
        ({"storage": _volume(claim=None, storage_class="Fast")}, "storage.storage_class"),
        ({"storage": _volume(claim=None, size="much")}, "storage.size"),
        ({"storage": _volume(mount="/other")}, "storage.mount"),
        ({"storage": _volume(mount="/")}, "storage.mount"),
        ({"storage": _volume(sub_path="a/../../b")}, "storage.sub_path"),
        ({"storage": _volume(sub_path="/a")}, "storage.sub_path"),
        ({"storage": _volume(access_mode="ReadOnlyMany")}, "storage.access_mode"),
        ({"storage": _volume(access_mode="ReadWriteOnce")}, "storage.access_mode"),
        ({"data": Volume()}, "data.claim"),
        ({"data": Volume(claim="a", mount="/elsewhere")}, "data.mount"),
        ({"data": Volume(claim="a", mount="/tmp")}, "data.mount"),
        ({"queue": "a" * 64}, "queue"),
        ({"queue": "Team"}, "queue"),
        ({"workload_priority_class": "high"}, "workload_priority_class"),
        ({"labels": {"team": "a b"}}, "labels.team"),
        ({"labels": {"ray.io/cluster": "a"}}, "labels.ray.io/cluster"),
        ({"labels": {"kueue.x-k8s.io/queue-name": "a"}}, "labels.kueue.x-k8s.io/queue-name"),
        ({"node_selector": {"a/b/c": "d"}}, "node_selector.a/b/c"),
        ({"annotations": {"a b": "c"}}, "annotations.a b"),
        ({"annotations": {"kueue.x-k8s.io/podset-required-topology": "rack"}}, "annotations"),
        ({"tolerations": (Toleration(key="a", operator="Exists", value="b"),)}, "tolerations"),
        ({"tolerations": (Toleration(value="b"),)}, "tolerations"),
        ({"tolerations": (Toleration(key="a b", operator="Exists"),)}, "tolerations"),
        ({"environment": {"RAY_AUTH_MODE": "disabled"}}, "environment.RAY_AUTH_MODE"),
        (
            {"environment": {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}},
            "environment.RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S",
        ),
        ({"secrets": (SecretVariable(variable="A=B", secret="a", key="b"),)}, "secrets"),
        ({"secrets": (SecretVariable(variable="A", secret="A", key="b"),)}, "secrets"),
        ({"secrets": (SecretVariable(variable="A", secret="a", key="b/c"),)}, "secrets"),
        ({"secrets": (SecretVariable(variable="A", secret="a", key="b"),) * 2}, "secrets"),
        ({"secrets": (SecretVariable(variable="HOME", secret="a", key="b"),)}, "secrets"),
        ({"worker_memory": "8GB"}, "worker_memory"),
        ({"shm_size": "100M"}, "shm_size"),
        ({"head": Pod(node_selector={"a": "b c"})}, "head.node_selector.a"),
        ({"head": Pod(tolerations=(Toleration(value="b"),))}, "head.tolerations"),
        ({"submitter": SubmitterPod(annotations={"a b": "c"})}, "submitter.annotations.a b"),
        ({"submitter": SubmitterPod(annotations={"kueue.x-k8s.io/podset-slice-size": "2"})}, "submitter.annotations"),
        ({"head": Pod(memory="128Mi")}, "head.memory"),
        ({"head": Pod(cpus="all")}, "head.cpus"),
        ({"submitter": SubmitterPod(cpus="0")}, "submitter.cpus"),
        ({"gpu_resource": "gpu"}, "gpu_resource"),
        ({"rdma_resource": "rdma"}, "rdma_resource"),
        ({"rdma_resource": "nvidia.com/gpu"}, "rdma_resource"),
        ({"rdma_count": 0}, "rdma_count"),
        ({"user_id": 0}, "user_id"),
        ({"start_timeout_s": 0}, "start_timeout_s"),
        ({"host_network": True}, "host_network"),
    ],
)
def test_what_is_wrong_with_a_site_has_the_profiles_key(spec, profile, changed, key):
    assert set(_keys(spec, dataclasses.replace(profile, **changed))) == {key}


def test_kueue_takes_one_topology_and_whole_slices(spec, everything):
    two = {"kueue.x-k8s.io/podset-required-topology": "rack", "kueue.x-k8s.io/podset-preferred-topology": "rack"}
    half = {"kueue.x-k8s.io/podset-slice-size": "2"}
    for wrong in (two, half):
        assert _keys(spec, dataclasses.replace(everything, annotations=wrong)) == ["annotations"]


def test_the_claim_of_the_data_exists_so_that_nothing_else_of_it_can_be_chosen(tmp_path):
    text = "kind: kubernetes\nimage: a/b:1\ndata: {claim: images, access_mode: ReadOnlyMany}\n"
    file = tmp_path / "profile.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"data\.access_mode: unknown key"):
        load_profile(file, "kubernetes")


def test_one_node_may_have_a_volume_of_its_own(spec, profile):
    alone = dataclasses.replace(spec, nodes=1, least_workers=4, most_workers=4)
    assert _keys(alone, dataclasses.replace(profile, storage=_volume(access_mode="ReadWriteOnce"))) == []


def test_storage_and_data_cannot_be_two_mounts_of_one_folder(spec, profile):
    same = dataclasses.replace(spec, data_root=spec.storage)
    assert _keys(same, profile) == ["storage.mount", "data.mount"]


def test_data_without_a_folder_needs_no_volume(spec, profile):
    assert _keys(dataclasses.replace(spec, data_root=None), profile) == ["data"]


@pytest.mark.parametrize("address", ["s3://b/code.zip", "https://host/a-1.zip", "gs://b/c.zip", "file:///shared/c.zip"])
def test_code_comes_from_an_address_that_ray_knows(spec, profile, address):
    assert _keys(spec, profile, working_dir=address) == []


@pytest.mark.parametrize(
    "address",
    [
        "./code",
        "s3://b/code",
        "s3://b/$(id).zip",
        "s3://b/`id`.zip",
        's3://b/".zip',
        "s3://b/a b.zip",
        "s3://b/a\n.zip",
    ],
)
def test_an_address_that_a_shell_would_act_on_is_refused(spec, profile, address):
    assert _keys(spec, profile, working_dir=address) == ["--working-dir"]


def test_problems_of_a_profile_are_marked_as_such(spec, profile):
    wrong = dataclasses.replace(profile, image="launcher", head=Pod(cpus="all"))
    assert {problem.key: problem.place for problem in problems(spec, wrong)} == {"image": PROFILE, "head.cpus": PROFILE}


def _doubts(spec, profile):
    return {problem.key: problem.found for problem in doubts(spec, profile)}


def test_a_path_on_no_volume_is_doubted_as_only_the_image_can_contain_it(spec, profile):
    alone = dataclasses.replace(profile, data=None)
    assert _doubts(spec, alone) == {"data.root": 'found "/data/imagenet", which is not on a volume of the pods'}
    inputs = {"model.weights": "/home/me/weights.pt", "preemption.notice_file": "/run/notice"}
    assert set(_doubts(dataclasses.replace(spec, other_inputs=inputs), profile)) == set(inputs)
    assert (
        "/shared/runs or /data/imagenet" in doubts(dataclasses.replace(spec, other_inputs=inputs), profile)[0].allowed
    )


def test_a_path_on_a_volume_is_not_doubted(spec, profile):
    alone = dataclasses.replace(profile, data=None)
    inputs = {"model.weights": "/shared/runs/weights.pt", "preemption.notice_file": "/data/imagenet/notice"}
    assert _doubts(dataclasses.replace(spec, other_inputs=inputs), profile) == {}
    assert _doubts(dataclasses.replace(spec, data_root="/shared/runs/data"), alone) == {}
    assert _doubts(spec, dataclasses.replace(alone, storage=_volume(mount="/"))) == {}
    assert _doubts(dataclasses.replace(spec, data_root=None), alone) == {}
    assert set(_doubts(dataclasses.replace(spec, data_root="/shared/runs-2"), alone)) == {"data.root"}


@pytest.mark.parametrize(
    "image",
    ["registry.example.com/a:1", "example.org/a:1", "registry.example/a:1", "your-registry/a:1", "changeme/a:1"],
)
def test_an_image_that_is_an_example_can_be_rendered_and_is_named(spec, profile, image):
    example = dataclasses.replace(profile, image=image)
    assert problems(spec, example) == []
    assert [(problem.key, problem.place) for problem in placeholders(example)] == [("image", PROFILE)]


@pytest.mark.parametrize(
    "image", ["training/launcher:1.0", "registry.site/example:1", "site.example-labs.io/not-your-own:1"]
)
def test_an_image_of_a_site_is_no_placeholder(profile, image):
    assert placeholders(dataclasses.replace(profile, image=image)) == []


@pytest.mark.parametrize("image", ["<REGISTRY>/a:1", "YOUR_REGISTRY/a:1", "CHANGEME:1"])
def test_placeholders_that_are_no_image_names_are_refused(spec, profile, image):
    assert _keys(spec, dataclasses.replace(profile, image=image)) == ["image"]
