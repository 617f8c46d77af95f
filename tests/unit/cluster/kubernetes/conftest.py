"""A run and a site that fit each other; tests change one thing at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from cluster.kubernetes.manifests import manifests
from cluster.profile import (
    KubernetesProfile,
    Network,
    Pod,
    SecretVariable,
    StorageVolume,
    SubmitterPod,
    Toleration,
    Volume,
)
from cluster.spec import RunSpec

SPEC = RunSpec(
    name="rn50",
    config="schema: 1\nname: rn50\nstorage: /shared/runs\n",
    storage="/shared/runs",
    data_root="/data/imagenet",
    least_workers=8,
    most_workers=8,
    nodes=2,
    gpus_per_worker=1,
    cpus_per_worker=4,
    walltime_s=4 * 3600,
)
DEDICATED = Toleration(key="dedicated", value="training", effect="NoSchedule")
PROFILE = KubernetesProfile(
    image="training/launcher:1.0", storage=StorageVolume(claim="runs"), data=Volume(claim="imagenet")
)
EVERYTHING = dataclasses.replace(
    PROFILE,
    namespace="training",
    image="training/launcher@sha256:" + "0" * 64,
    image_pull_secrets=("registry",),
    storage=StorageVolume(storage_class="fast", sub_path="team/a"),
    queue="team-a",
    workload_priority_class="high",
    priority_class="training-high",
    node_selector={"nvidia.com/gpu.product": "H100"},
    tolerations=(Toleration(key="nvidia.com/gpu", operator="Exists", effect="NoSchedule"),),
    gpu_resource="nvidia.com/mig-3g.40gb",
    rdma_resource="rdma/hca_shared_devices_a",
    runtime_class="nvidia",
    annotations={"kueue.x-k8s.io/podset-preferred-topology": "cloud.provider.com/topology-rack"},
    labels={"team": "vision"},
    head=Pod(
        cpus="2",
        memory="6Gi",
        node_selector={"pool": "cpu"},
        tolerations=(DEDICATED,),
        annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    ),
    submitter=SubmitterPod(
        node_selector={"pool": "spot"}, tolerations=(DEDICATED,), annotations={"sidecar.istio.io/inject": "false"}
    ),
    environment={"NCCL_DEBUG": "INFO"},
    secrets=(SecretVariable(variable="S3_KEY", secret="object-store", key="access-key"),),
    network=Network(interface="eth0", environment={"NCCL_IB_HCA": "mlx5"}),
    spare_nodes=1,
)
CPU = dataclasses.replace(PROFILE, data=None, storage=StorageVolume(access_mode="ReadWriteMany"), network_policy=False)


@pytest.fixture
def spec() -> RunSpec:
    return SPEC


@pytest.fixture
def profile() -> KubernetesProfile:
    return PROFILE


@pytest.fixture
def everything() -> KubernetesProfile:
    """A profile that gives every key that manifests depend on."""
    return EVERYTHING


@pytest.fixture(params=["plain", "everything", "cpu", "http"])
def rendered(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """The manifests of four kinds of site."""
    spec, working_dir = SPEC, None
    profile = {"plain": PROFILE, "everything": EVERYTHING, "cpu": CPU, "http": PROFILE}[request.param]
    if request.param == "cpu":
        spec = dataclasses.replace(SPEC, gpus_per_worker=0, data_root=None)
    if request.param == "http":
        profile, working_dir = dataclasses.replace(PROFILE, submission_mode="HTTPMode"), "s3://code/run.zip"
    return manifests(spec, profile, working_dir=working_dir)


@pytest.fixture
def render() -> Callable[..., dict[str, dict[str, Any]]]:
    """Manifests by kind, of SPEC and PROFILE with changes: `render(spec={"nodes": 4}, profile={"queue": "a"})`."""

    def made(
        spec: dict[str, Any] | None = None, profile: dict[str, Any] | None = None, **options: Any
    ) -> dict[str, dict[str, Any]]:
        changed = dataclasses.replace(SPEC, **(spec or {})), dataclasses.replace(PROFILE, **(profile or {}))
        return {manifest["kind"]: manifest for manifest in manifests(*changed, **options)}

    return made
