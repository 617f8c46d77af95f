"""The process group of Ray Train's workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray
from ray.train.torch import TorchConfig

from launcher.checks.finding import Finding, require
from launcher.checks.network import select_interface
from launcher.ray_backend.handover import STAGE, Mailbox

_TorchBackend: Any = TorchConfig().backend_cls


@dataclass
class ProcessGroupConfig(TorchConfig):
    """Ray's own settings, with an interface for gloo that the other nodes reach, and the mailbox of the driver."""

    box: Mailbox | None = None

    @property
    def backend_cls(self) -> Any:
        """What Ray calls to set up and shut down the process group."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called by Ray's controller to make the process group. Raises ClusterUnavailable."""
        if isinstance(backend_config, ProcessGroupConfig) and backend_config.box is not None:
            backend_config.box.put(STAGE, "setting up the process group")
        places = worker_group.execute(_place)
        if len({node_id for node_id, _ in places}) > 1:
            _, head = places[0]
            require(worker_group.execute(_select_interface, head))
        super().on_start(worker_group, backend_config)


def _place() -> tuple[str, str]:
    """The id and the address of this worker's node."""
    return ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()


def _select_interface(head: str) -> Finding:
    return select_interface(head).on(ray.util.get_node_ip_address())
