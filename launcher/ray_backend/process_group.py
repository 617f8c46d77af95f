"""The process group of Ray Train's workers.

The driver and Ray's controller do not import torch: it would delay every start by its import in two more processes.
So this is a backend of its own, whose functions import Ray's ones for PyTorch (ray/train/torch/config.py) in the
workers, where they run.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
import ray.exceptions
from ray.train.backend import Backend, BackendConfig

from launcher.checks.finding import Finding, require
from launcher.checks.network import select_interface
from launcher.ray_backend.handover import PLACEMENT_GROUP, STAGE, Mailbox

SHUTDOWN_S = 5.0  # for the workers to leave the group: a frozen one delays a restart by at most this


@dataclass
class ProcessGroupConfig(BackendConfig):
    """Settings of the process group, and the mailbox of the driver. `timeout_s` is that of its collectives."""

    backend: str
    timeout_s: int
    box: Mailbox

    @property
    def backend_cls(self) -> Any:
        """What Ray calls to set up and shut down the process group."""
        return _Backend

    @property
    def train_func_context(self) -> Any:
        """What Ray enters around the training function, in the worker."""
        return _CurrentDevice


class _Backend(Backend):
    share_cuda_visible_devices = True  # NCCL connects GPUs of one host directly only if each process sees all of them

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called by Ray's controller to make the process group. Raises ClusterUnavailable."""
        assert isinstance(backend_config, ProcessGroupConfig)
        backend_config.box.put(STAGE, "setting up the process group")
        state = worker_group.get_worker_group_state()
        backend_config.box.put(PLACEMENT_GROUP, state.placement_group_handle.placement_group)
        places = worker_group.execute(_place)
        if len({node_id for node_id, _ in places}) > 1:
            _, head = places[0]
            require(worker_group.execute(_select_interface, head))
        address, port = worker_group.execute_single(0, _address_and_port)
        settings = backend_config.backend, backend_config.timeout_s
        joined = [
            worker_group.execute_single_async(rank, _join, rank, len(places), address, port, *settings)
            for rank in range(len(places))
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called by Ray's controller before it ends the workers. Raises RayActorError at once if one is dead."""
        with contextlib.suppress(ray.exceptions.GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=SHUTDOWN_S)


class _CurrentDevice:
    """Makes the GPU of this worker the current device."""

    def __enter__(self) -> None:
        from ray.train.torch.config import TorchConfigContextManager

        TorchConfigContextManager().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing is left to do."""


def _place() -> tuple[str, str]:
    """The id and the address of this worker's node."""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _select_interface(head: str) -> Finding:
    return select_interface(head).on(ray.util.get_node_ip_address())


def _address_and_port() -> tuple[str, int]:
    """The address of this worker and a free port, for the store of the process group."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return str(address), int(port)


def _join(rank: int, world_size: int, address: str, port: int, backend: str, timeout_s: int) -> None:
    """Join the process group, with the environment variables that PyTorch and Ray document."""
    from ray.train.torch import config as torch_config

    os.environ.update({"MASTER_ADDR": address, "MASTER_PORT": str(port)})
    torch_config._set_torch_distributed_env_vars()
    torch_config._setup_torch_process_group(backend, rank, world_size, "env://", timeout_s)


def _leave() -> None:
    from ray.train.torch import config as torch_config

    torch_config._shutdown_torch(destroy_process_group=True)
