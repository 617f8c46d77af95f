"""cluster/kubernetes/manifests.py: what a run becomes on Kubernetes."""

from __future__ import annotations

import dataclasses
import re

import pytest

from cluster.errors import PlaceError
from cluster.kubernetes import pods
from cluster.kubernetes.manifests import manifests, reader_job, submission_of
from cluster.profile import SecretVariable, StorageVolume
from cluster.spec import Variant


def _environment(template):
    return {each["name"]: each.get("value") for each in template["spec"]["containers"][0]["env"]}


def _templates(job):
    cluster = job["spec"]["rayClusterSpec"]
    return {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "submitter": job["spec"]["submitterPodTemplate"],
    }


def test_what_is_needed_first_comes_first(spec, everything):
    kinds = [manifest["kind"] for manifest in manifests(spec, everything)]
    beside = ["PersistentVolumeClaim", "ConfigMap", "ServiceAccount", "NetworkPolicy", "PodDisruptionBudget"]
    assert kinds == [*beside, "RayJob"]


def test_the_workers_of_a_node_share_a_pod(render):
    group = render()["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (2, 2, 2)
    assert (group["rayStartParams"]["num-cpus"], group["rayStartParams"]["num-gpus"]) == ("16", "4")
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits == {"cpu": "16", "memory": "33Gi", "nvidia.com/gpu": "4"}  # 4 workers of 8Gi, and 1Gi of /dev/shm
    assert group["template"]["spec"]["containers"][0]["resources"]["requests"] == limits


def test_spare_nodes_are_pods_more(render):
    made = render(profile={"spare_nodes": 2})
    assert made["RayJob"]["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replicas"] == 4
    assert made["PodDisruptionBudget"]["spec"]["minAvailable"] == 5


def test_no_worker_is_placed_on_the_head(render):
    head = render()["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize(("of_run", "of_site"), [(60, 60), (300, 60), (30, 120)])
def test_grace_is_longer_than_drain_and_drain_than_the_notice(render, of_run, of_site):
    job = render(spec={"notice_s": of_run}, profile={"notice_s": of_site})["RayJob"]
    for role in ("head", "worker"):
        template = _templates(job)[role]
        drain = int(_environment(template)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert template["spec"]["terminationGracePeriodSeconds"] > drain > max(of_run, of_site)


def test_stopping_the_job_leaves_the_driver_time_to_save(render):
    head = _templates(render(spec={"notice_s": 300})["RayJob"])["head"]
    assert _environment(head)["RAY_JOB_STOP_WAIT_TIME_S"] == "300"


def test_the_driver_is_told_to_save_before_kuberay_ends_the_run(render):
    job = render(profile={"start_timeout_s": 600})["RayJob"]["spec"]
    limit, walltime = re.fullmatch(
        r"timeout --foreground --preserve-status --signal=USR2 --kill-after=(\d+) (\d+)"
        r" python -m launcher\.train /etc/resnet-launcher/config\.yaml",
        job["entrypoint"],
    ).groups()
    assert walltime == "14400"
    assert job["preRunningDeadlineSeconds"] == 600
    assert job["activeDeadlineSeconds"] > 600 + int(walltime) + int(limit)


def test_every_pod_carries_the_runs_own_label_whatever_kuberay_calls_it(render):
    for role, template in _templates(render()["RayJob"]).items():
        assert template["metadata"]["labels"] == {"resnet-launcher/run": "rn50", "resnet-launcher/role": role}


def test_the_network_policy_lets_in_the_cluster_and_on_the_dashboards_port_operator_and_submitter(render):
    policy = render(profile={"operator_namespace": "ray-system"})["NetworkPolicy"]["spec"]
    inside, dashboard = policy["ingress"]
    assert "ports" not in inside
    assert inside["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["head", "worker"]
    operator, submitter = dashboard["from"]
    assert operator["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "ray-system"}
    assert submitter["podSelector"]["matchLabels"]["resnet-launcher/role"] == "submitter"
    assert dashboard["ports"] == [{"protocol": "TCP", "port": 8265}]


def test_no_pod_gets_a_token_of_the_api_server(spec, everything):
    made = {manifest["kind"]: manifest for manifest in manifests(spec, everything)}
    assert made["ServiceAccount"]["automountServiceAccountToken"] is False
    templates = [*_templates(made["RayJob"]).values(), reader_job(spec, everything, ["status"])["spec"]["template"]]
    assert [template["spec"]["automountServiceAccountToken"] for template in templates] == [False] * 4


def test_every_container_is_unprivileged_with_a_read_only_root(spec, everything):
    job = next(manifest for manifest in manifests(spec, everything) if manifest["kind"] == "RayJob")
    for role, template in _templates(job).items():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        security = template["spec"]["containers"][0]["securityContext"]
        assert security["readOnlyRootFilesystem"] is True
        assert security["allowPrivilegeEscalation"] is False
        added = {"add": ["IPC_LOCK"]} if role == "worker" else {}  # the profile has RDMA
        assert security["capabilities"] == {"drop": ["ALL"], **added}


def test_secrets_enter_by_reference_and_only_where_training_runs(render):
    secret = SecretVariable(variable="S3_KEY", secret="object-store", key="access-key")
    templates = _templates(render(profile={"secrets": (secret,)})["RayJob"])
    reference = {"name": "S3_KEY", "valueFrom": {"secretKeyRef": {"name": "object-store", "key": "access-key"}}}
    has_it = {role: reference in template["spec"]["containers"][0]["env"] for role, template in templates.items()}
    assert has_it == {"head": True, "worker": True, "submitter": False}


def test_the_storage_is_mounted_where_the_config_expects_it_and_the_data_read_only(render):
    worker = _templates(render()["RayJob"])["worker"]["spec"]["containers"][0]
    mounts = {mount["name"]: mount for mount in worker["volumeMounts"]}
    assert mounts["storage"] == {"name": "storage", "mountPath": "/shared/runs"}
    assert mounts["data"] == {"name": "data", "mountPath": "/data/imagenet", "readOnly": True}
    assert mounts["shared-mem"]["mountPath"] == "/dev/shm"


def test_a_claim_is_made_only_where_the_profile_names_none(render):
    assert "PersistentVolumeClaim" not in render()
    claim = render(profile={"storage": StorageVolume(storage_class="fast", size="2Ti")})["PersistentVolumeClaim"]
    assert claim["metadata"]["name"] == "rn50-storage"
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"] == {"requests": {"storage": "2Ti"}}


def test_a_queue_is_a_label_and_kueue_alone_suspends(render):
    made = render(profile={"queue": "team-a", "workload_priority_class": "high"})["RayJob"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert made["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"
    assert "suspend" not in made["spec"]
    assert made["spec"]["shutdownAfterJobFinishes"] is True


def test_each_pod_runs_where_the_profile_says_for_its_role(spec, everything):
    job = next(manifest for manifest in manifests(spec, everything) if manifest["kind"] == "RayJob")
    templates = _templates(job) | {"reader": reader_job(spec, everything, ["status"])["spec"]["template"]}
    dedicated = {"key": "dedicated", "operator": "Equal", "value": "training", "effect": "NoSchedule"}
    gpu = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    assert {role: template["spec"]["nodeSelector"] for role, template in templates.items()} == {
        "head": {"pool": "cpu"},
        "worker": {"nvidia.com/gpu.product": "H100"},
        "submitter": {"pool": "spot"},
        "reader": {"pool": "spot"},
    }
    assert {role: template["spec"]["tolerations"] for role, template in templates.items()} == {
        "head": [dedicated],
        "worker": [gpu],
        "submitter": [dedicated],
        "reader": [dedicated],
    }
    assert {role: list(template["metadata"]["annotations"]) for role, template in templates.items()} == {
        "head": ["cluster-autoscaler.kubernetes.io/safe-to-evict"],
        "worker": ["kueue.x-k8s.io/podset-preferred-topology"],
        "submitter": ["sidecar.istio.io/inject"],
        "reader": ["sidecar.istio.io/inject"],
    }
    for role, amounts in {"head": ("2", "6Gi"), "submitter": ("500m", "1Gi"), "reader": ("500m", "1Gi")}.items():
        resources = templates[role]["spec"]["containers"][0]["resources"]
        assert resources["limits"] == resources["requests"] == dict(zip(("cpu", "memory"), amounts, strict=True))
        assert templates[role]["metadata"]["labels"]["team"] == "vision"


def test_a_pod_without_settings_runs_anywhere(render):
    for template in _templates(render()["RayJob"]).values():
        assert not {"nodeSelector", "tolerations"} & set(template["spec"])
        assert "annotations" not in template["metadata"]


def test_another_config_gets_another_config_map(render):
    first, second = render()["ConfigMap"], render(spec={"config": "schema: 1\nname: other\n"})["ConfigMap"]
    assert first["immutable"] is True
    assert first["metadata"]["name"] != second["metadata"]["name"]


def test_retries_of_kuberay_belong_to_one_submission_and_a_new_image_makes_another(spec, profile, render):
    word = _environment(_templates(render()["RayJob"])["head"])[pods.SUBMISSION_VARIABLE]
    assert word == submission_of(spec, profile)
    assert word != submission_of(spec, dataclasses.replace(profile, image="training/launcher:1.1"))
    again = render(submission="try-2")["RayJob"]
    assert _environment(_templates(again)["head"])[pods.SUBMISSION_VARIABLE] == "try-2"


def test_without_a_submitter_pod_none_is_described(render):
    job = render(profile={"submission_mode": "HTTPMode"})["RayJob"]["spec"]
    assert "submitterPodTemplate" not in job
    assert "submitterConfig" not in job


def test_code_comes_as_an_archive_that_ray_fetches(render):
    job = render(working_dir="s3://bucket/code-1.zip")["RayJob"]["spec"]
    assert job["runtimeEnvYAML"] == 'working_dir: "s3://bucket/code-1.zip"\n'


def test_the_hosts_network_keeps_the_clusters_names(render):
    pod = _templates(render(profile={"host_network": True, "network_policy": False})["RayJob"])["worker"]["spec"]
    assert (pod["hostNetwork"], pod["dnsPolicy"]) == (True, "ClusterFirstWithHostNet")


def test_everything_that_is_wrong_is_found_at_once(spec, profile):
    with pytest.raises(PlaceError) as error:
        manifests(dataclasses.replace(spec, walltime_s=None), dataclasses.replace(profile, image="launcher"))
    assert [problem.key for problem in error.value.problems] == ["cluster.walltime", "image"]


def test_overrides_are_folded_into_the_config_by_the_caller(spec, profile):
    for changed in ({"overrides": ("seed=1",)}, {"variants": (Variant(name="a", overrides=("name=a",)),)}):
        with pytest.raises(AssertionError):
            manifests(dataclasses.replace(spec, **changed), profile)


def test_a_reader_sees_the_storage_and_cannot_change_it(spec, profile):
    job = reader_job(spec, profile, ["status", "/shared/runs/rn50", "--json"])
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["command"] == ["python", "-m", "launcher"]
    assert container["args"] == ["status", "/shared/runs/rn50", "--json"]
    assert {"name": "storage", "mountPath": "/shared/runs", "readOnly": True} in container["volumeMounts"]
    assert [each["name"] for each in pod["volumes"]] == ["tmp", "storage"]
    assert job["spec"]["backoffLimit"] == 0


def test_a_reader_that_writes_may(spec, profile):
    container = reader_job(spec, profile, ["cancel"], writes=True)["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "storage", "mountPath": "/shared/runs"} in container["volumeMounts"]
