"""Which runs and profiles Kubernetes can take, judged by the keys that a user wrote.

A mismatch of the run's own config has no place: its key is found in the config's document. One of the profile's has the
key's FILE:LINE where `places` knows it, and `profile` where not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import yaml

from cluster.errors import Mismatch
from cluster.kubernetes.lint_pods import KUBERAY_VARIABLES, TOPOLOGIES
from cluster.kubernetes.names import (
    is_cpus,
    is_label,
    is_label_value,
    is_object_name,
    is_qualified,
    is_variable,
    num_bytes,
)
from cluster.kubernetes.pods import CONFIG_FOLDER, HEAD_SHM, OBJECT_STORE_BYTES, SUBMISSION_VARIABLE
from cluster.profile import KubernetesProfile, Volume
from cluster.spec import RunSpec

PROFILE = "profile"

_NAME = "lower-case letters, digits, - and ., a letter or digit at both ends"
_MAX_CONFIG_BYTES = 1_000_000  # a ConfigMap has room for 2**20 bytes, its own few included
_TAKEN_FOLDERS = ("/", "/dev/shm", "/tmp", CONFIG_FOLDER)
_OUR_VARIABLES = ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_JOB_STOP_WAIT_TIME_S", SUBMISSION_VARIABLE)
_OUR_LABELS = ("resnet-launcher/", "ray.io/", "kueue.x-k8s.io/")
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})\.[0-9]{1,4}")
_FIRST_VERSION = (2, 53)  # KubeRay's probes and ours ask the agent only from here on; tokens need 2.52
# [registry[:port]/]path[:tag][@digest]; the tag or digest is asked for
_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
# Nothing that a shell acts on: KubeRay pastes the address into one. Ray takes archives only, by these protocols.
_CODE = re.compile(r"(https|s3|gs|file)://[A-Za-z0-9_./:=@%+-]+\.zip")

_Wrong = Callable[[str, object, str], Mismatch]


def problems(
    spec: RunSpec,
    profile: KubernetesProfile,
    *,
    working_dir: str | None = None,
    places: Mapping[str, str] | None = None,
) -> list[Mismatch]:
    """Every reason why the cluster would not take the run; arguments as of `manifests.manifests`."""

    def wrong(key: str, found: object, allowed: str) -> Mismatch:
        known = places or {}
        nearest = key
        while nearest and nearest not in known:
            nearest = nearest.rpartition(".")[0]
        return Mismatch(known.get(nearest, PROFILE), key, f"found {found}", allowed)

    found = [*_run(spec), *_names(profile, wrong), *_labels(profile, wrong), *_variables(profile, wrong)]
    found += [*_amounts(spec, profile, wrong), *_volumes(spec, profile, wrong), *_pods(profile, wrong)]
    if working_dir is not None and _CODE.fullmatch(working_dir) is None:
        allowed = "the address of a .zip: https://, s3://, gs://, or file:/// on the storage volume; no shell signs"
        found.append(Mismatch("", "--working-dir", f'found "{working_dir}"', allowed))
    return found


def _run(spec: RunSpec) -> Iterator[Mismatch]:
    if spec.walltime_s is None:
        allowed = 'hours:minutes:seconds, quoted: "04:00:00". On Kubernetes it is the only end of a run that is stuck'
        yield Mismatch("", "cluster.walltime", "missing", allowed)
    if len(spec.config.encode("utf-8", "replace")) > _MAX_CONFIG_BYTES:
        yield Mismatch("", "", f"a config of more than {_MAX_CONFIG_BYTES} bytes", "one that fits into a ConfigMap")
    for key, text in (("", spec.config), ("storage", spec.storage), ("data.root", spec.data_root or "")):
        if "\0" in text:
            yield Mismatch("", key, "found a NUL character", "text")
    for key, path in (("storage", spec.storage), ("data.root", spec.data_root)):
        if path is not None and (not path.startswith("/") or ":" in path):
            yield Mismatch("", key, f'found "{path}"', "an absolute path without :, since it becomes a mount")
    try:
        config = yaml.safe_load(spec.config)
    except yaml.YAMLError:
        return  # the launcher wrote it, or a test: what cannot be read has no `place`
    if isinstance(config, dict) and config.get("place") == "local":
        allowed = "ray or auto: on Kubernetes the driver runs in a pod that trains nothing"
        yield Mismatch("", "place", "found local", allowed)


def _names(profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    for key in ("namespace", "operator_namespace"):
        if not is_label(getattr(profile, key)):
            yield wrong(key, f'"{getattr(profile, key)}"', "at most 63 lower-case letters, digits and -")
    claims = {"storage": profile.storage} | ({} if profile.data is None else {"data": profile.data})
    names = {key: getattr(profile, key) for key in ("service_account", "priority_class", "runtime_class")}
    for key, volume in claims.items():
        names |= {f"{key}.claim": volume.claim, f"{key}.storage_class": volume.storage_class}
    for key, name in names.items():
        if name is not None and not is_object_name(name):
            yield wrong(key, f'"{name}"', _NAME)
    for secret in profile.image_pull_secrets:
        if not is_object_name(secret):
            yield wrong("image_pull_secrets", f'"{secret}"', _NAME)
    for key in ("queue", "workload_priority_class"):  # they are the values of labels too
        name = getattr(profile, key)
        if name is not None and not (is_object_name(name) and is_label_value(name)):
            yield wrong(key, f'"{name}"', f"at most 63 {_NAME}")
    if profile.workload_priority_class is not None and profile.queue is None:
        yield wrong("workload_priority_class", "it without a queue", "queue with it: Kueue alone reads it")
    has_tag = ":" in profile.image.rpartition("/")[2] or "@" in profile.image
    if _IMAGE.fullmatch(profile.image) is None or not has_tag or profile.image.endswith(":latest"):
        yield wrong("image", f'"{profile.image}"', "NAME:TAG or NAME@sha256:DIGEST, and not latest")
    version = _VERSION.fullmatch(profile.ray_version)
    if version is None or (int(version[1]), int(version[2])) < _FIRST_VERSION:
        yield wrong("ray_version", f'"{profile.ray_version}"', "the image's Ray, 2.53.0 or later, quoted")


def _labels(profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    for section in ("labels", "node_selector"):
        for label, value in getattr(profile, section).items():
            if not is_qualified(label) or not is_label_value(value):
                allowed = "domain/name, and at most 63 letters, digits, - _ . as its value"
                yield wrong(f"{section}.{label}", f'"{value}"', allowed)
    for label in profile.labels:
        if label.startswith(_OUR_LABELS):
            yield wrong(f"labels.{label}", "a label that is set already", f"none of {', '.join(_OUR_LABELS)}")
    for annotation in profile.annotations:
        if not is_qualified(annotation):
            yield wrong(f"annotations.{annotation}", "no name of an annotation", "name, or domain/name")
    kueue = {name.removeprefix("kueue.x-k8s.io/") for name in profile.annotations if name.startswith("kueue.x-k8s.io/")}
    if len(kueue & set(TOPOLOGIES)) > 1:
        yield wrong("annotations", "more than one of Kueue's topologies", f"one of {', '.join(TOPOLOGIES)}")
    if len(kueue & {"podset-slice-required-topology", "podset-slice-size"}) == 1:
        yield wrong("annotations", "half of a slice", "podset-slice-required-topology with podset-slice-size")
    if kueue and profile.queue is None:
        yield wrong("annotations", "Kueue's without a queue", "queue with them: Kueue alone reads them")
    for toleration in profile.tolerations:
        if toleration.operator == "Exists" and toleration.value is not None:
            yield wrong("tolerations", f'Exists with the value "{toleration.value}"', "Equal with a value, or Exists")
        if toleration.key is None and toleration.operator != "Exists":
            yield wrong("tolerations", "no key", "a key, or Exists alone for every taint")
        if toleration.key is not None and not is_qualified(toleration.key):
            yield wrong("tolerations", f'"{toleration.key}"', "a taint's key: name, or domain/name")


def _variables(profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    sections = {"environment": profile.environment, "network.environment": profile.network.environment}
    for section, variables in sections.items():
        for name in variables:
            if not is_variable(name):
                yield wrong(f"{section}.{name}", "no name of a variable", "letters, digits and _, no digit first")
            if name in KUBERAY_VARIABLES or name in _OUR_VARIABLES:
                yield wrong(f"{section}.{name}", "a variable that is set already", "any other")
    given = set(profile.environment) | set(profile.network.environment)
    seen: set[str] = set()
    for entry in profile.secrets:
        if not is_variable(entry.variable) or entry.variable in KUBERAY_VARIABLES + _OUR_VARIABLES:
            yield wrong("secrets", f'variable "{entry.variable}"', "letters, digits and _, and none of Ray's own")
        if entry.variable in given | seen:
            yield wrong("secrets", f"{entry.variable} twice", "each variable once, here or in environment")
        seen.add(entry.variable)
        if not is_object_name(entry.secret):
            yield wrong("secrets", f'secret "{entry.secret}"', _NAME)
        if re.fullmatch(r"[A-Za-z0-9._-]{1,253}", entry.key) is None:
            yield wrong("secrets", f'key "{entry.key}"', "letters, digits, - _ and .")


def _amounts(spec: RunSpec, profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    bytes_of: dict[str, int] = {}
    quantities = {
        "worker_memory": profile.worker_memory,
        "shm_size": profile.shm_size,
        "head.memory": profile.head.memory,
        "submitter.memory": profile.submitter.memory,
        "storage.size": profile.storage.size,
    }
    for key, text in quantities.items():
        try:
            bytes_of[key] = num_bytes(text)
        except ValueError:
            yield wrong(key, f'"{text}"', "an amount such as 8Gi or 500M")
    for key, text in (("head.cpus", profile.head.cpus), ("submitter.cpus", profile.submitter.cpus)):
        if not is_cpus(text):
            yield wrong(key, f'"{text}"', "CPUs: 500m, 2, 1.5")
    if bytes_of.get("shm_size", OBJECT_STORE_BYTES + 1) <= OBJECT_STORE_BYTES:
        yield wrong("shm_size", profile.shm_size, f"more than Ray's object store in it, {OBJECT_STORE_BYTES} bytes")
    if bytes_of.get("head.memory", num_bytes(HEAD_SHM) + 1) <= num_bytes(HEAD_SHM):
        yield wrong("head.memory", profile.head.memory, f"more than {HEAD_SHM}, its shared memory alone")
    resources = {"gpu_resource": profile.gpu_resource if spec.gpus_per_worker else None}
    resources["rdma_resource"] = profile.rdma_resource
    for key, resource in resources.items():
        if resource is not None and ("/" not in resource or not is_qualified(resource)):
            yield wrong(key, f'"{resource}"', "domain/name, as `kubectl describe node` lists it")
    for key in ("rdma_count", "start_timeout_s", "notice_s", "user_id", "group_id"):
        if getattr(profile, key) < 1:
            because = ": root is refused" if key in ("user_id", "group_id") else ""
            yield wrong(key, getattr(profile, key), f"a whole number from 1 up{because}")


def _volumes(spec: RunSpec, profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    storage = profile.storage.mount or spec.storage
    if profile.storage.mount is not None and not _is_within(spec.storage, storage):
        yield wrong("storage.mount", f'"{storage}"', f"a folder that the run's storage {spec.storage} lies in")
    if profile.storage.access_mode == "ReadOnlyMany":
        yield wrong("storage.access_mode", "ReadOnlyMany", "ReadWriteMany: the run writes there")
    if profile.storage.access_mode == "ReadWriteOnce" and spec.nodes + profile.spare_nodes > 1:
        allowed = "ReadWriteMany: pods on several nodes share it (cluster.nodes is above 1)"
        yield wrong("storage.access_mode", "ReadWriteOnce", allowed)
    mounts = {"storage": storage}
    if profile.data is not None:
        if spec.data_root is None:
            yield wrong("data", "a volume", "none: the run's data has no folder")
        if profile.data.claim is None:
            yield wrong("data.claim", "none", "an existing claim: one made for the run would be empty")
        data = profile.data.mount or spec.data_root
        if data is not None:
            mounts["data"] = data
            if spec.data_root is not None and not _is_within(spec.data_root, data):
                yield wrong("data.mount", f'"{data}"', f"a folder that the run's data {spec.data_root} lies in")
    for key, folder in mounts.items():
        taken = [other for name, other in mounts.items() if name != key] + list(_TAKEN_FOLDERS)
        if not folder.startswith("/") or ":" in folder or any(_is_same(folder, other) for other in taken):
            allowed = f"an absolute path without :, mounted once, none of {', '.join(_TAKEN_FOLDERS)}"
            yield wrong(f"{key}.mount", f'"{folder}"', allowed)
    volumes: dict[str, Volume | None] = {"storage": profile.storage, "data": profile.data}
    for key, volume in volumes.items():
        path = None if volume is None else volume.sub_path
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            yield wrong(f"{key}.sub_path", f'"{path}"', "a path within the volume, without ..")


def _pods(profile: KubernetesProfile, wrong: _Wrong) -> Iterator[Mismatch]:
    if profile.host_network and profile.network_policy:
        allowed = "network_policy: false with it, said by you: a policy does nothing for the host's own network"
        yield wrong("host_network", "true", allowed)


def _is_within(path: str, folder: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _is_same(path: str, other: str) -> bool:
    return path.rstrip("/") == other.rstrip("/")
