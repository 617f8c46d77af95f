"""What an API server says of a RayJob, its pods and its queue, and what it is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from cluster.spec import RunSpec
from launcher.config.profiles import load_profile
from launcher.errors import ClusterUnavailable
from launcher.places import kubernetes as kubernetes_jobs
from launcher.places.programs import NotAnswered, PlaceUnavailable

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
        "kubectl --context=lab --namespace=training get rayjob --ignore-not-found -o json -- small",
        "kubectl --context=lab --namespace=training apply -f -",
    ]
    assert list(yaml.safe_load_all(places.read("applied"))) == MANIFESTS


def test_an_ended_rayjob_is_deleted_first(places: Any) -> None:
    places.says("rayjob", job("Failed"))
    kubernetes_jobs.submit(MANIFESTS, "small", "training", None)
    assert "kubectl --namespace=training delete rayjob --timeout=120s --ignore-not-found -- small" in places.calls()


def test_the_servers_message_is_shown_below_the_first_line(places: Any) -> None:
    message = 'Error from server (Forbidden): rayjobs.ray.io is forbidden: User "me" cannot patch'
    places.says("refuses", f"\x1b[31m{message}\x1b[0m\n")
    with pytest.raises(PlaceUnavailable) as raised:
        kubernetes_jobs.check(MANIFESTS, "training", None)
    first = "kubectl apply: the cluster of context lab refuses it"
    assert str(raised.value) == f"{first}\n    {message}"


def test_a_cluster_that_does_not_answer_is_named_and_log_lines_are_left_out(places: Any) -> None:
    places.says("down", "")
    for context, name in ((None, "lab"), ("other", "other")):
        with pytest.raises(NotAnswered) as raised:
            kubernetes_jobs.check(MANIFESTS, "training", context)
        assert str(raised.value) == (
            f"kubectl: the cluster of context {name} cannot be reached\n"
            "    The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?"
        )


@pytest.mark.parametrize(
    "printed",
    [
        "Unable to connect to the server: net/http: TLS handshake timeout",
        "Unable to connect to the server: dial tcp: lookup api.site on 10.0.0.2:53: no such host",
        "Unable to connect to the server: context deadline exceeded",
        "error: unexpected EOF",
        "Error from server: etcdserver: request timed out",
        "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
        "Error from server (TooManyRequests): Too many requests, please try again later",
    ],
)
def test_an_api_server_without_an_answer_is_asked_again(places: Any, patient: None, printed: str) -> None:
    again = f"#!/bin/bash\nmv $PLACE/kubectl $PLACE/bin/kubectl\necho '{printed}' >&2\nexit 1\n"
    places.says("kubectl", places.read("bin/kubectl"))
    (places.folder / "kubectl").chmod(0o755)
    places.says("bin/kubectl", again)
    assert ask() == ("gone", "there is no RayJob small in namespace training")


@pytest.mark.parametrize(
    "printed",
    [
        "Unable to connect to the server: x509: certificate signed by unknown authority",
        "error: You must be logged in to the server (Unauthorized)",
        "Error from server (Forbidden): rayjobs.ray.io is forbidden",
    ],
)
def test_what_would_be_refused_again_is_asked_once(places: Any, patient: None, printed: str) -> None:
    places.says("bin/kubectl", f"#!/bin/bash\necho call >> $CALLS\necho '{printed}' >&2\nexit 1\n")
    with pytest.raises(PlaceUnavailable, match="refuses it"):
        kubernetes_jobs.ask("small", "training", "lab")
    assert places.calls() == ["call"]


@pytest.mark.parametrize(
    ("printed", "context", "first"),
    [
        ('error: context "nope" does not exist', "nope", "kubectl has no context nope"),
        ("The connection to the server localhost:8080 was refused", None, "kubectl has no current context"),
    ],
)
def test_without_a_cluster_the_contexts_are_listed(
    places: Any, patient: None, printed: str, context: str | None, first: str
) -> None:
    contexts = '[ "$2" != get-contexts ] || { echo lab; echo other; exit; }'
    places.says("bin/kubectl", f"#!/bin/bash\n{contexts}\necho '{printed}' >&2\nexit 1\n")
    with pytest.raises(PlaceUnavailable) as raised:
        kubernetes_jobs.ask("small", "training", context)
    assert str(raised.value).splitlines()[0] == f"{first}. Allowed: --context with one of lab, other"


def test_a_cluster_without_kuberay_is_named(places: Any) -> None:
    places.says(
        "bin/kubectl", '#!/bin/bash\necho "error: the server doesn\'t have a resource type \\"rayjob\\"" >&2; exit 1\n'
    )
    with pytest.raises(
        PlaceUnavailable, match=r"the cluster of context lab has no RayJobs\. Allowed: one with KubeRay"
    ):
        kubernetes_jobs.ask("small", "training", "lab")


def test_an_error_before_the_submission_says_that_nothing_was_submitted(places: Any) -> None:
    places.says("rayjob", job("Failed"))
    places.says("bin/kubectl", places.read("bin/kubectl").replace('delete rayjob")', 'delete rayjob") exit 1;'))
    with pytest.raises(PlaceUnavailable, match="the cluster of context lab refuses it; nothing was submitted"):
        kubernetes_jobs.submit(MANIFESTS, "small", "training", "lab")


@pytest.mark.parametrize(
    ("apply", "outcome"),
    [
        ("echo 'Error from server (Forbidden): exceeded quota' >&2; exit 1", "RayJob small was not created"),
        ('echo \'{"status": {}}\' > $PLACE/rayjob; echo "error: unexpected EOF" >&2; exit 1',
         "RayJob small was created anyway"),
        ("touch $PLACE/down; echo 'error: unexpected EOF' >&2; exit 1", "RayJob small may have been created"),
        ("echo 'dial tcp 10.0.0.1:6443: connect: connection refused' >&2; exit 1", "nothing was submitted"),
    ],
)  # fmt: skip
def test_an_error_says_whether_the_rayjob_was_created(places: Any, apply: str, outcome: str) -> None:
    places.says("bin/kubectl", places.read("bin/kubectl").replace('cat > "$PLACE/applied";', f"{apply};"))
    with pytest.raises(PlaceUnavailable) as raised:
        kubernetes_jobs.submit(MANIFESTS, "small", "training", "lab")
    assert f"; {outcome}" in raised.value.line


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
        (job("Waiting", failed=2), ("pending", "restart 2: waiting for a job id")),
        ({"status": None}, ("pending", "KubeRay has not processed it yet: check that its operator is running")),
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
    with pytest.raises(NotAnswered):
        ask()


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
    assert "kubectl --namespace=default delete --wait=false -- job.batch/reader-x7k2p" in places.calls()


def test_a_missing_kubectl_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ClusterUnavailable, match="kubectl is not on this machine's PATH"):
        kubernetes_jobs.check(MANIFESTS, "training", None)


@pytest.mark.parametrize("name", ["--kubeconfig=x", "-A", "--all", "a\nb", ""])
def test_no_name_becomes_an_option(places: Any, name: str) -> None:
    log = '#!/bin/bash\nprintf "%s\\0" "$@" >> "$PLACE/words"; echo -n end >> "$PLACE/words"\n'
    places.says("bin/kubectl", log + 'case "$*" in *get*) echo \'{"status": {}}\' ;; esac\n')
    kubernetes_jobs.stop(name, name, name, save=False)
    kubernetes_jobs.submit(MANIFESTS, name, name, name)
    for call in places.read("words").split("end")[:-1]:
        words = call.split("\0")[:-1]
        assert words[:2] == [f"--context={name}", f"--namespace={name}"]
        selected = [word for word in words[2:] if name and name in word]
        if "--" in words:
            assert words[words.index("--") + 1 :] == [name]
            selected.remove(name) if name else None
        assert all(word == f"--selector=resnet-launcher/run={name}" for word in selected)


def test_a_log_that_breaks_off_is_not_taken_for_its_end(places: Any) -> None:
    places.says("reader.log", "")
    (places.folder / "reader.log").unlink()
    spec = RunSpec(name="small", config="schema: 1\n", storage="/runs", walltime_s=600)
    profile = load_profile("kubernetes-cpu", "kubernetes")
    with pytest.raises(PlaceUnavailable, match="kubectl logs ended with exit code 1: the output may be incomplete"):
        kubernetes_jobs.read(spec, profile, ["logs", "/runs/small"], None, live=True)
