"""A site's profile: what is true of a place and not of a run. A YAML file in, a frozen dataclass out.

The dataclasses are the schema: their fields are the keys. Text is taken as it is written (`account: 0123` keeps its
zero, `qos: no` is text); unknown and repeated keys are refused with file, line and the nearest name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Network:
    """How workers reach each other."""

    interface: str | None = None  # NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME, for example ib0
    environment: dict[str, str] = field(default_factory=dict)  # further variables of every worker, NCCL_IB_HCA=mlx5


@dataclass(frozen=True, kw_only=True)
class Container:
    """The image that the training processes run in under SLURM."""

    runtime: Literal["apptainer", "pyxis"]
    image: str  # apptainer: a .sif file or docker://...; pyxis: a .sqsh file or registry#name:tag
    mounts: tuple[str, ...] = ()  # SOURCE:TARGET or SOURCE:TARGET:ro; the run's storage and data are added


@dataclass(frozen=True, kw_only=True)
class SlurmProfile:
    """A SLURM site. Everything is optional: what is left out, the site's defaults decide."""

    kind: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: str = "--gpus-per-node={count}"  # the site's way to ask for GPUs: --gres=gpu:a100:{count}
    memory: str | None = None  # of a node: 0 (all of it), 64G
    exclusive: bool = False  # whole nodes
    sbatch: tuple[str, ...] = ()  # further options: --reservation=name
    modules: tuple[str, ...] = ()  # `module load` on every node
    venv: str | None = None  # an absolute path on every node
    conda: str | None = None  # the same, an environment's folder
    environment: dict[str, str] = field(default_factory=dict)  # variables of every process; no secrets
    container: Container | None = None
    network: Network = field(default_factory=Network)
    spare_nodes: int = 0  # allocated beyond what the run needs, to take the place of a lost one
    notice_s: int = 120  # between the signal and the time limit
    scratch: str = "/tmp"  # on every node's own disk; short, since sockets lie below it


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Where a folder of the run lies in Kubernetes: an existing claim, or one made from a storage class."""

    claim: str | None = None  # an existing PersistentVolumeClaim
    storage_class: str | None = None  # for a claim of the run's own; None: the cluster's default
    size: str = "100Gi"
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"] = "ReadWriteMany"
    mount: str | None = None  # the folder it appears as; None: the run's own storage or data root
    sub_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """As in a pod's `tolerations`."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


@dataclass(frozen=True, kw_only=True)
class SecretVariable:
    """An environment variable whose value stays in a Secret."""

    variable: str
    secret: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Pod:
    """What a kind of pod gets beyond the workers' own needs."""

    cpus: str = "1"
    memory: str = "4Gi"


@dataclass(frozen=True, kw_only=True)
class KubernetesProfile:
    """A Kubernetes cluster with KubeRay."""

    kind: Literal["kubernetes"] = "kubernetes"
    image: str  # with a tag or digest: a run is repeated with the same one
    ray_version: str = "2.60.0"  # the image's own; KubeRay asks for it
    namespace: str = "default"
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str | None = None  # None: one of the run's own, without a token
    storage: Volume = field(default_factory=Volume)
    data: Volume | None = None  # None: the data is in the image or on the storage volume
    queue: str | None = None  # Kueue's LocalQueue
    priority_class: str | None = None
    workload_priority_class: str | None = None  # Kueue's
    node_selector: dict[str, str] = field(default_factory=dict)  # of the workers
    tolerations: tuple[Toleration, ...] = ()
    gpu_resource: str = "nvidia.com/gpu"  # or a MIG slice: nvidia.com/mig-3g.40gb
    rdma_resource: str | None = None  # rdma/hca_shared_devices_a
    rdma_count: int = 1  # of a worker pod
    runtime_class: str | None = None
    host_network: bool = False
    annotations: dict[str, str] = field(default_factory=dict)  # of worker pods: k8s.v1.cni.cncf.io/networks
    labels: dict[str, str] = field(default_factory=dict)  # of everything
    worker_memory: str = "8Gi"  # of one worker
    shm_size: str = "1Gi"  # of /dev/shm in a worker pod
    head: Pod = field(default_factory=Pod)
    submitter: Pod = field(default_factory=lambda: Pod(cpus="500m", memory="1Gi"))  # and of readers
    submission_mode: Literal["K8sJobMode", "HTTPMode"] = "K8sJobMode"  # a pod submits and logs; or the operator does
    environment: dict[str, str] = field(default_factory=dict)  # variables of every process; no secrets
    secrets: tuple[SecretVariable, ...] = ()
    network: Network = field(default_factory=Network)
    spare_nodes: int = 0
    notice_s: int = 60  # what a save and an orderly end need; drain and grace period follow from it
    user_id: int = 1000
    group_id: int = 1000
    operator_namespace: str = "kuberay-system"
    network_policy: bool = True
    disruption_budget: bool = True
    start_timeout_s: int = 1800  # for all pods to be there, an image pull included


Profile = SlurmProfile | KubernetesProfile
