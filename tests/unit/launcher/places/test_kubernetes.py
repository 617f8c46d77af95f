"""What an API server says of a RayJob, its pods and its queue, and what it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cluster.spec import RunSpec
from launcher.config.profiles import load_profile
from launcher.errors import ClusterUnavailable
from launcher.places import kubernetes as kubernetes_jobs

MANIFESTS = [{"kind": "ConfigMap"}, {"kind": "RayJob"}]


def job(state: str, **status: Any) -> dict[str, Any]:
    return {"status": {"jobDeploymentStatus": state, **status}}


def ask() -> tuple[str, str]:
    status = kubernetes_jobs.ask("small", "training", None)
    return status.state, status.reason


def test_what_is_applied_is_checked_by_the_server_first(places: Any) -> None:
    kubernetes_jobs.check(MANIFESTS, "training", "lab")
    kubernetes_jobs.submit(MANIFESTS, "small", "training", "lab")
    assert places.calls() == [
        "kubectl --context=lab --namespace=training apply --dry-run=server -f -",
        "kubectl --context=lab --namespace=training get rayjob small --ignore-not-found -o json",
        "kubectl --context=lab --namespace=training apply -f -",
    ]
    assert list(yaml.safe_load_all(places.read("applied"))) == MANIFESTS


def test_an_ended_rayjob_is_deleted_first(places: Any) -> None:
    places.says("rayjob", job("Failed"))
    kubernetes_jobs.submit(MANIFESTS, "small", "training", None)
    assert "kubectl --namespace=training delete rayjob small --timeout=120s" in places.calls()


def test_the_servers_message_is_shown_in_full(places: Any) -> None:
    places.says("refuses", 'Error from server (Forbidden): rayjobs.ray.io is forbidden: User "me" cannot patch')
    with pytest.raises(ClusterUnavailable, match=r"apply --dry-run=server: Error from server .Forbidden.*cannot patch"):
        kubernetes_jobs.check(MANIFESTS, "training", None)


def test_an_unprocessed_rayjob_names_the_operator(places: Any) -> None:
    places.says("rayjob", {"metadata": {}})
    assert ask() == ("pending", "KubeRay has not processed it yet: check that its operator is running")


def test_a_pod_without_a_node_says_why(places: Any) -> None:
    places.says("rayjob", job("Initializing"))
    condition = {"type": "PodScheduled", "status": "False", "message": "0/4 nodes: insufficient nvidia.com/gpu"}
    places.says("pods", {"items": [{"status": {"conditions": [condition]}}]})
    assert ask() == ("pending", "its pods are being created: 0/4 nodes: insufficient nvidia.com/gpu")


def test_an_image_that_cannot_be_pulled_says_so(places: Any) -> None:
    places.says("rayjob", job("Initializing"))
    starting = {"state": {"waiting": {"reason": "PodInitializing"}}}
    pulling = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
    places.says("pods", {"items": [{"status": {"containerStatuses": [starting, pulling]}}]})
    assert ask() == ("pending", "its pods are being created: ImagePullBackOff: not found")


def test_kueues_reason_is_shown_and_its_absence_is_no_error(places: Any) -> None:
    places.says("rayjob", job("Suspended"))
    assert ask() == ("pending", "suspended: Kueue has not admitted it")
    condition = {"type": "QuotaReserved", "status": "False", "message": "insufficient unused quota"}
    workload = {"metadata": {"ownerReferences": [{"name": "small"}]}, "status": {"conditions": [condition]}}
    places.says("workloads", {"items": [workload]})
    assert ask() == ("pending", "suspended: Kueue has not admitted it: insufficient unused quota")


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        (job("Running"), ("running", "running")),
        (job("Suspending"), ("running", "suspending")),
        (job("Complete"), ("gone", "KubeRay reports Complete")),
        (job("Failed", reason="AppFailed", message="exit 78"), ("gone", "KubeRay reports Failed: AppFailed: exit 78")),
        (job("ValidationFailed", message="suspend"), ("gone", "KubeRay reports ValidationFailed: suspend")),
    ],
)
def test_a_state_of_kuberay_becomes_a_job_status(places: Any, manifest: Any, expected: tuple[str, str]) -> None:
    places.says("rayjob", manifest)
    assert ask() == expected


def test_no_rayjob_is_gone_and_no_answer_is_not(places: Any) -> None:
    assert ask() == ("gone", "there is no RayJob small in namespace training")
    places.says("down", "")
    assert ask()[0] == "unreachable"


def test_cancelling_deletes_the_rayjob_and_only_killing_its_pods(places: Any) -> None:
    places.says("rayjob", job("Running"))
    assert "saves and exits" in kubernetes_jobs.stop("small", "training", None, save=True)
    assert not any("delete pods" in call for call in places.calls())
    places.says("rayjob", job("Running"))
    kubernetes_jobs.stop("small", "training", None, save=False)
    assert places.calls()[-1].endswith("delete pods --selector=resnet-launcher/run=small --grace-period=1 --wait=false")


def test_a_reader_prints_what_the_volume_has_and_is_removed(places: Any) -> None:
    places.says("reader.log", "it is well\n")
    spec = RunSpec(name="small", config="schema: 1\n", storage="/runs", walltime_s=600)
    profile = load_profile("kubernetes-cpu", "kubernetes")
    assert kubernetes_jobs.read(spec, profile, ["status", "/runs/small"], None) == "it is well\n"
    made = yaml.safe_load(places.read("reader"))
    assert made["spec"]["template"]["spec"]["containers"][0]["args"] == ["status", "/runs/small"]
    assert places.calls()[-1] == "kubectl --namespace=default delete job.batch/reader-x7k2p --wait=false"


def test_a_missing_kubectl_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterUnavailable, match="kubectl is not on this machine's PATH"):
        kubernetes_jobs.check(MANIFESTS, "training", None)
