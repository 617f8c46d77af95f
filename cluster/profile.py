"""A site's profile: settings of a SLURM or Kubernetes cluster that are the same for all runs.

The fields are the keys of the profile's YAML file; `launcher.config.profiles` reads it. Where a field is text, a number
or boolean keeps its spelling in the file: `NCCL_IB_DISABLE: 1`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Network:
    """The network between workers."""

    interface: str | None = None  # NCCL_SOCKET_IFNAME, e.g. ib0 or ^lo,docker; a plain name is gloo's too
    environment: dict[str, str] = field(default_factory=dict)  # other variables of each worker, e.g. NCCL_IB_HCA: mlx5

    @property
    def variables(self) -> dict[str, str]:
        """The variables of each worker. gloo gets plain names only: it does not know NCCL's `^` and `=`."""
        if self.interface is None:
            return dict(self.environment)
        named = {"NCCL_SOCKET_IFNAME": self.interface}
        if self.interface[:1] not in ("^", "="):
            named["GLOO_SOCKET_IFNAME"] = self.interface
        return named | self.environment


@dataclass(frozen=True, kw_only=True)
class Container:
    """The image of the training processes under SLURM."""

    runtime: Literal["apptainer", "pyxis"]
    image: str  # apptainer: a .sif file or docker://...; pyxis: a .sqsh file or registry#name:tag
    mounts: tuple[str, ...] = ()  # SOURCE:TARGET or SOURCE:TARGET:ro, in addition to storage, data and scratch


@dataclass(frozen=True, kw_only=True)
class SlurmProfile:
    """A SLURM cluster. All keys are optional; SLURM's own defaults apply to what is not given."""

    kind: Literal["slurm"] = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus: str | None = "--gpus-per-node={count}"  # option of sbatch, e.g. --gres=gpu:a100:{count}; null: none
    memory: str | None = None  # per node: 0 (all of it), 64G
    exclusive: bool = False  # allocate whole nodes
    sbatch: tuple[str, ...] = ()  # other options of sbatch, e.g. --reservation=name
    modules: tuple[str, ...] = ()  # modules to load
    venv: str | None = None  # absolute path of a virtual environment, the same on each node
    conda: str | None = None  # absolute path of a conda environment, the same on each node
    environment: dict[str, str] = field(default_factory=dict)  # variables of each process; no secrets
    container: Container | None = None
    network: Network = field(default_factory=Network)
    spare_nodes: int = 0  # additional nodes, to replace a lost one
    notice_s: int = 120  # seconds between the signal and the time limit
    scratch: str = "/tmp"  # folder on a local disk of each node, e.g. /scratch/$SLURM_JOB_ID; contains Ray's sockets


@dataclass(frozen=True, kw_only=True)
class Volume:
    """The volume of an existing claim. Pods mount that of the data read-only."""

    claim: str | None = None  # an existing PersistentVolumeClaim
    mount: str | None = None  # mount path; None: the run's storage or data root
    sub_path: str | None = None


@dataclass(frozen=True, kw_only=True)
class StorageVolume(Volume):
    """The volume of the run directory: an existing claim, or a new one from a storage class."""

    storage_class: str | None = None  # of a new claim; None: the cluster's default
    size: str = "100Gi"  # of a new claim
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce", "ReadOnlyMany"] = "ReadWriteMany"


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
    """The head's pod: its resources (requests and limits are equal), and the nodes that it may run on."""

    cpus: str = "1"
    memory: str = "4Gi"
    node_selector: dict[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    annotations: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SubmitterPod(Pod):
    """The submitter's pod, and those of reader Jobs."""

    cpus: str = "500m"
    memory: str = "1Gi"


@dataclass(frozen=True, kw_only=True)
class KubernetesProfile:
    """A Kubernetes cluster with KubeRay."""

    kind: Literal["kubernetes"] = "kubernetes"
    image: str  # with a tag or digest
    ray_version: str = "2.60.0"  # version of Ray in the image, required by KubeRay
    namespace: str = "default"
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    service_account: str | None = None  # None: a new one for the run, without a token
    storage: StorageVolume = field(default_factory=StorageVolume)
    data: Volume | None = None  # None: the data is in the image or on the storage volume
    queue: str | None = None  # LocalQueue of Kueue
    priority_class: str | None = None
    workload_priority_class: str | None = None  # WorkloadPriorityClass of Kueue
    node_selector: dict[str, str] = field(default_factory=dict)  # of the workers
    tolerations: tuple[Toleration, ...] = ()  # of the workers
    gpu_resource: str = "nvidia.com/gpu"  # or a MIG slice: nvidia.com/mig-3g.40gb
    rdma_resource: str | None = None  # e.g. rdma/hca_shared_devices_a
    rdma_count: int = 1  # per worker pod
    runtime_class: str | None = None
    host_network: bool = False
    annotations: dict[str, str] = field(default_factory=dict)  # of the worker pods, e.g. k8s.v1.cni.cncf.io/networks
    labels: dict[str, str] = field(default_factory=dict)  # of all objects
    worker_memory: str = "8Gi"  # per worker
    shm_size: str = "1Gi"  # of /dev/shm in a worker pod
    head: Pod = field(default_factory=Pod)
    submitter: SubmitterPod = field(default_factory=SubmitterPod)  # and reader Jobs
    submission_mode: Literal["K8sJobMode", "HTTPMode"] = "K8sJobMode"  # who submits: a pod, or the operator
    environment: dict[str, str] = field(default_factory=dict)  # variables of each process; no secrets
    secrets: tuple[SecretVariable, ...] = ()
    network: Network = field(default_factory=Network)
    spare_nodes: int = 0
    notice_s: int = 60  # seconds for a save and a clean exit; Ray's drain and the grace period are longer
    user_id: int = 1000
    group_id: int = 1000
    operator_namespace: str = "kuberay-system"
    network_policy: bool = True
    disruption_budget: bool = True
    start_timeout_s: int = 1800  # seconds until all pods are ready, including image pulls


Profile = SlurmProfile | KubernetesProfile
