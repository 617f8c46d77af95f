"""Which runs and profiles are valid on Kubernetes, by the keys that the user wrote.

A problem of a profile has `PROFILE` as its place, one of the run config an empty one; the caller looks up the lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from cluster.errors import Problem
from cluster.kubernetes.names import (
    is_cpus,
    is_label,
    is_label_value,
    is_object_name,
    is_qualified,
    is_variable,
    num_bytes,
)
from cluster.kubernetes.pods import (
    CONFIG_FOLDER,
    HEAD_SHM,
    OBJECT_STORE_BYTES,
    SUBMISSION_VARIABLE,
    data_mount,
    storage_mount,
    variables,
)
from cluster.profile import KubernetesProfile, Pod, Toleration, Volume
from cluster.spec import RunSpec

PROFILE = "profile"  # the place of problems of a profile

_NAME = "lower-case letters, digits, - and ., a letter or digit at both ends"
_MAX_CONFIG_BYTES = 1_000_000  # a ConfigMap has at most 2**20 bytes, including its metadata
_TAKEN_FOLDERS = ("/", "/dev/shm", "/tmp", CONFIG_FOLDER)
_OUR_VARIABLES = ("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "RAY_JOB_STOP_WAIT_TIME_S", SUBMISSION_VARIABLE)
# KubeRay v1.7.0, pod.go: it appends these to every Ray container, and a second one of the same name is refused.
_KUBERAY_VARIABLES = (
    "RAY_CLUSTER_NAME",
    "RAY_CLUSTER_NAMESPACE",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_NODE_TYPE_NAME",
    "KUBERAY_GEN_RAY_START_CMD",
    "FQ_RAY_IP",
    "RAY_IP",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
)
_TOPOLOGIES = ("podset-required-topology", "podset-preferred-topology", "podset-unconstrained-topology")
_OUR_LABELS = ("resnet-launcher/", "ray.io/", "kueue.x-k8s.io/")
_VERSION = re.compile(r"([0-9]{1,3})\.([0-9]{1,4})\.[0-9]{1,4}")
_FIRST_VERSION = (2, 53)  # the first whose agent answers the probes; tokens need 2.52
# [registry[:port]/]path[:tag][@digest], with a tag or a digest
_IMAGE = re.compile(
    r"[a-z0-9][a-z0-9._-]*(:[0-9]+)?(/[a-z0-9._-]+)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@sha256:[0-9a-f]{64})?"
)
# Reserved names (RFC 2606), and words that ask to be replaced.
_PLACEHOLDER = re.compile(r"\bexample\.(com|net|org)\b|\.example(?=[:/])|\bchange[-_]?me\b|(^|[/.])your[-_]")
# Without shell characters: KubeRay pastes the address into a shell. Ray reads archives by these protocols.
_CODE = re.compile(r"(https|s3|gs|file)://[A-Za-z0-9_./:=@%+-]+\.zip")


def problems(spec: RunSpec, profile: KubernetesProfile, *, working_dir: str | None = None) -> list[Problem]:
    """All mistakes of a run and a profile; arguments as of `manifests.manifests`."""
    found = [*_run(spec), *_names(profile), *_labels(profile), *_variables(spec, profile)]
    found += [*_amounts(spec, profile), *_volumes(spec, profile), *_pods(profile)]
    if working_dir is not None and _CODE.fullmatch(working_dir) is None:
        allowed = "the address of a .zip: https://, s3://, gs:// or file:/// (on the storage volume), not quoted"
        found.append(Problem("", "--working-dir", f'found "{working_dir}"', allowed))
    return found


def placeholders(profile: KubernetesProfile) -> list[Problem]:
    """Values that are examples: manifests can be rendered with them, but not submitted."""
    if not _PLACEHOLDER.search(profile.image):
        return []
    return [_wrong("image", f'"{profile.image}", a placeholder', "an image that the cluster can pull")]


def doubts(spec: RunSpec, profile: KubernetesProfile) -> list[Problem]:
    """Settings that are valid but probably a mistake: resources that nobody requests, and paths that the pods have only
    if the image contains them."""
    mounts = [mount for mount in (storage_mount(spec, profile), data_mount(spec, profile)) if mount is not None]
    inputs = spec.other_inputs | ({} if spec.data_root is None else {"data.root": spec.data_root})
    allowed = f"a path in {' or '.join(mounts)}, another volume in the profile, or a path that the image contains"
    return spec.doubts(profile.spare_nodes) + [
        Problem("", key, f'found "{path}", which is not on a volume of the pods', allowed)
        for key, path in inputs.items()
        if not any(_is_within(path, mount) for mount in mounts)
    ]


def _run(spec: RunSpec) -> Iterator[Problem]:
    if spec.walltime_s is None:
        allowed = 'hours:minutes:seconds, quoted: "04:00:00". On Kubernetes nothing else stops a run that hangs'
        yield Problem("", "cluster.walltime", "missing", allowed)
    if len(spec.config.encode("utf-8", "replace")) > _MAX_CONFIG_BYTES:
        yield Problem("", "", f"a config of more than {_MAX_CONFIG_BYTES} bytes", "a smaller config")
    for key, text in (("", spec.config), ("storage", spec.storage), ("data.root", spec.data_root or "")):
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in text):
            yield Problem("", key, "found a character that a file cannot contain", "text in UTF-8, without NUL")
    for key, path in (("storage", spec.storage), ("data.root", spec.data_root)):
        if path is not None and (not path.startswith("/") or ":" in path):
            yield Problem("", key, f'found "{path}"', "an absolute path without :, because it becomes a mount path")


def _names(profile: KubernetesProfile) -> Iterator[Problem]:
    for key in ("namespace", "operator_namespace"):
        if not is_label(getattr(profile, key)):
            yield _wrong(key, f'"{getattr(profile, key)}"', "at most 63 lower-case letters, digits and -")
    names = {key: getattr(profile, key) for key in ("service_account", "priority_class", "runtime_class")}
    names |= {"storage.claim": profile.storage.claim, "storage.storage_class": profile.storage.storage_class}
    names["data.claim"] = None if profile.data is None else profile.data.claim
    for key, name in names.items():
        if name is not None and not is_object_name(name):
            yield _wrong(key, f'"{name}"', _NAME)
    for secret in profile.image_pull_secrets:
        if not is_object_name(secret):
            yield _wrong("image_pull_secrets", f'"{secret}"', _NAME)
    for key in ("queue", "workload_priority_class"):  # they are the values of labels too
        name = getattr(profile, key)
        if name is not None and not (is_object_name(name) and is_label_value(name)):
            yield _wrong(key, f'"{name}"', f"at most 63 {_NAME}")
    if profile.workload_priority_class is not None and profile.queue is None:
        yield _wrong("workload_priority_class", "it without a queue", "it together with queue: only Kueue reads it")
    has_tag = ":" in profile.image.rpartition("/")[2] or "@" in profile.image
    if _IMAGE.fullmatch(profile.image) is None or not has_tag or profile.image.endswith(":latest"):
        yield _wrong("image", f'"{profile.image}"', "NAME:TAG or NAME@sha256:DIGEST, but not latest")
    version = _VERSION.fullmatch(profile.ray_version)
    if version is None or (int(version[1]), int(version[2])) < _FIRST_VERSION:
        yield _wrong("ray_version", f'"{profile.ray_version}"', "the image's version of Ray, 2.53.0 or later, quoted")


def _labels(profile: KubernetesProfile) -> Iterator[Problem]:
    yield from _selectors("labels", profile.labels)
    for label in profile.labels:
        if label.startswith(_OUR_LABELS):
            yield _wrong(f"labels.{label}", "a label that the launcher sets", f"none of {', '.join(_OUR_LABELS)}")
    pods: dict[str, Pod | KubernetesProfile] = {"": profile, "head.": profile.head, "submitter.": profile.submitter}
    for prefix, pod in pods.items():
        yield from _selectors(f"{prefix}node_selector", pod.node_selector)
        yield from _annotations(f"{prefix}annotations", pod.annotations, has_queue=profile.queue is not None)
        yield from _tolerations(f"{prefix}tolerations", pod.tolerations)


def _selectors(key: str, labels: Mapping[str, str]) -> Iterator[Problem]:
    for label, value in labels.items():
        if not is_qualified(label) or not is_label_value(value):
            allowed = "domain/name, and at most 63 letters, digits, - _ . as its value"
            yield _wrong(f"{key}.{label}", f'"{value}"', allowed)


def _annotations(key: str, annotations: Mapping[str, str], *, has_queue: bool) -> Iterator[Problem]:
    for annotation in annotations:
        if not is_qualified(annotation):
            yield _wrong(f"{key}.{annotation}", "not the name of an annotation", "name, or domain/name")
    kueue = {name.removeprefix("kueue.x-k8s.io/") for name in annotations if name.startswith("kueue.x-k8s.io/")}
    if len(kueue & set(_TOPOLOGIES)) > 1:
        yield _wrong(key, "more than one of Kueue's topologies", f"one of {', '.join(_TOPOLOGIES)}")
    if len(kueue & {"podset-slice-required-topology", "podset-slice-size"}) == 1:
        yield _wrong(key, "half of a slice", "podset-slice-required-topology together with podset-slice-size")
    if kueue and not has_queue:
        yield _wrong(key, "annotations of Kueue without a queue", "them with queue: only Kueue reads them")


def _tolerations(key: str, tolerations: Sequence[Toleration]) -> Iterator[Problem]:
    for toleration in tolerations:
        if toleration.operator == "Exists" and toleration.value is not None:
            yield _wrong(key, f'Exists with the value "{toleration.value}"', "Equal with a value, or Exists")
        if toleration.key is None and toleration.operator != "Exists":
            yield _wrong(key, "no key", "a key, or only Exists for every taint")
        if toleration.key is not None and not is_qualified(toleration.key):
            yield _wrong(key, f'"{toleration.key}"', "a taint's key: name, or domain/name")


def _variables(spec: RunSpec, profile: KubernetesProfile) -> Iterator[Problem]:
    reserved = _KUBERAY_VARIABLES + _OUR_VARIABLES
    sections = {"environment": profile.environment, "network.environment": profile.network.environment}
    for section, names in sections.items():
        for name in names:
            if name in reserved:
                yield _wrong(f"{section}.{name}", "a variable that the launcher or KubeRay sets", "any other")
    seen = set(variables(spec, profile))
    for entry in profile.secrets:
        if not is_variable(entry.variable) or entry.variable in reserved:
            yield _wrong("secrets", f'variable "{entry.variable}"', "letters, digits and _, and not a variable of Ray")
        elif entry.variable in seen:
            yield _wrong("secrets", f"{entry.variable} twice", "each variable once, here or in environment")
        seen.add(entry.variable)
        if not is_object_name(entry.secret):
            yield _wrong("secrets", f'secret "{entry.secret}"', _NAME)
        if re.fullmatch(r"[A-Za-z0-9._-]{1,253}", entry.key) is None:
            yield _wrong("secrets", f'key "{entry.key}"', "letters, digits, - _ and .")


def _amounts(spec: RunSpec, profile: KubernetesProfile) -> Iterator[Problem]:
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
            yield _wrong(key, f'"{text}"', "an amount such as 8Gi or 500M")
    for key, text in (("head.cpus", profile.head.cpus), ("submitter.cpus", profile.submitter.cpus)):
        if not is_cpus(text):
            yield _wrong(key, f'"{text}"', "CPUs: 500m, 2, 1.5")
    if bytes_of.get("shm_size", OBJECT_STORE_BYTES + 1) <= OBJECT_STORE_BYTES:
        yield _wrong("shm_size", profile.shm_size, f"more than the {OBJECT_STORE_BYTES} bytes of Ray's object store")
    if bytes_of.get("head.memory", num_bytes(HEAD_SHM) + 1) <= num_bytes(HEAD_SHM):
        yield _wrong("head.memory", profile.head.memory, f"more than {HEAD_SHM}, its shared memory")
    resources = {"gpu_resource": profile.gpu_resource if spec.gpus_per_worker else None}
    resources["rdma_resource"] = profile.rdma_resource
    for key, resource in resources.items():
        if resource is not None and ("/" not in resource or not is_qualified(resource)):
            yield _wrong(key, f'"{resource}"', "domain/name, as `kubectl describe node` lists it")
    rdma = profile.rdma_resource
    if rdma is not None and (rdma == profile.gpu_resource or rdma.endswith("gpu")):
        yield _wrong("rdma_resource", f'"{rdma}", a GPU', "a network device: rdma/hca_shared_devices_a")
    for key in ("rdma_count", "start_timeout_s", "notice_s", "user_id", "group_id"):
        if getattr(profile, key) < 1:
            because = ": root is refused" if key in ("user_id", "group_id") else ""
            yield _wrong(key, getattr(profile, key), f"a whole number from 1 up{because}")


def _volumes(spec: RunSpec, profile: KubernetesProfile) -> Iterator[Problem]:
    storage = profile.storage.mount or spec.storage
    if profile.storage.mount is not None and not _is_within(spec.storage, storage):
        yield _wrong("storage.mount", f'"{storage}"', f"a folder that contains the run's storage {spec.storage}")
    if profile.storage.access_mode == "ReadOnlyMany":
        yield _wrong("storage.access_mode", "ReadOnlyMany", "ReadWriteMany: the run writes to it")
    if profile.storage.access_mode == "ReadWriteOnce" and spec.nodes + profile.spare_nodes > 1:
        allowed = "ReadWriteMany: pods on several nodes share it (cluster.nodes is above 1)"
        yield _wrong("storage.access_mode", "ReadWriteOnce", allowed)
    mounts = {"storage": storage}
    if profile.data is not None:
        if spec.data_root is None:
            yield _wrong("data", "a volume", "none: the run's data has no folder")
        if profile.data.claim is None:
            yield _wrong("data.claim", "none", "an existing claim: a new one would be empty")
        data = profile.data.mount or spec.data_root
        if data is not None:
            mounts["data"] = data
            if spec.data_root is not None and not _is_within(spec.data_root, data):
                yield _wrong("data.mount", f'"{data}"', f"a folder that contains the run's data {spec.data_root}")
    for key, folder in mounts.items():
        taken = [other.rstrip("/") for name, other in mounts.items() if name != key]
        taken += [other.rstrip("/") for other in _TAKEN_FOLDERS]
        if not folder.startswith("/") or ":" in folder or folder.rstrip("/") in taken:
            allowed = f"an absolute path without :, mounted once, none of {', '.join(_TAKEN_FOLDERS)}"
            yield _wrong(f"{key}.mount", f'"{folder}"', allowed)
    volumes: dict[str, Volume | None] = {"storage": profile.storage, "data": profile.data}
    for key, volume in volumes.items():
        path = None if volume is None else volume.sub_path
        if path is not None and (path.startswith("/") or ".." in path.split("/")):
            yield _wrong(f"{key}.sub_path", f'"{path}"', "a path within the volume, without ..")


def _pods(profile: KubernetesProfile) -> Iterator[Problem]:
    if profile.host_network and profile.network_policy:
        allowed = "network_policy: false with it: a policy has no effect on the host's network"
        yield _wrong("host_network", "true", allowed)


def _wrong(key: str, found: object, allowed: str) -> Problem:
    return Problem(PROFILE, key, f"found {found}", allowed)


def _is_within(path: str, folder: str) -> bool:
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")
