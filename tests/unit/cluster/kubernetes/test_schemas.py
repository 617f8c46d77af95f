"""The manifests against KubeRay's strict schemas and Kubernetes' own types; nothing here needs a cluster."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from cluster.kubernetes.access import roles
from cluster.kubernetes.manifests import reader_job

REFERENCES = Path(__file__).parents[5] / "shared" / "references"
RAYJOB_SCHEMA = REFERENCES / "kuberay_v1.7.0_rayjob.schema.json"
KUBERNETES = "1.34"


@pytest.fixture(scope="module")
def ray_job_schema():
    if not RAYJOB_SCHEMA.exists():
        pytest.skip(f"KubeRay's strict schema of a RayJob is not at {RAYJOB_SCHEMA}")
    return jsonschema.Draft202012Validator(json.loads(RAYJOB_SCHEMA.read_text()))


def _ray_job(manifests):
    return next(manifest for manifest in manifests if manifest["kind"] == "RayJob")


def _wrong(schema, manifest):
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in schema.iter_errors(manifest)]


def test_kuberay_knows_every_field(ray_job_schema, rendered):
    assert _wrong(ray_job_schema, _ray_job(rendered)) == []


def test_the_strict_schema_finds_a_field_that_kuberay_does_not_know(ray_job_schema, rendered):
    job = copy.deepcopy(_ray_job(rendered))
    job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    assert len(_wrong(ray_job_schema, job)) == 1


def test_kubernetes_knows_every_field_of_what_stands_beside_the_job(rendered):
    for manifest in rendered:
        if manifest["kind"] != "RayJob":
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kubernetes_knows_every_field_of_the_pods(rendered):
    job = _ray_job(rendered)["spec"]
    cluster = job["rayClusterSpec"]
    templates = [cluster["headGroupSpec"]["template"], *(group["template"] for group in cluster["workerGroupSpecs"])]
    templates += [job["submitterPodTemplate"]] if "submitterPodTemplate" in job else []
    for template in templates:
        pods = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pods"}, "template": template}
        kubernetes_validate.validate(pods, KUBERNETES, strict=True)


def test_kubernetes_knows_every_field_of_readers_and_roles(spec, everything):
    for manifest in (reader_job(spec, everything, ["status"]), *roles(everything)):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def test_kubernetes_types_find_a_field_of_another_name(rendered):
    budget = copy.deepcopy(next(each for each in rendered if each["kind"] == "PodDisruptionBudget"))
    budget["spec"]["minimumAvailable"] = budget["spec"].pop("minAvailable")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget, KUBERNETES, strict=True)
