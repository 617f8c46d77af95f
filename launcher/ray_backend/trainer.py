"""Ray Train's trainer without the processes that a run of the launcher has no use for.

Each would be another process at the start, in part one after the other, and in part at every restart. If a version of
Ray names these methods differently, they are not called, and the processes are started as ever.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# Processes for data sets of Ray Data, and for placement groups whose controller is killed: the driver removes those.
_UNUSED = (DatasetsCallback, PlacementGroupCleanerCallback)


class Trainer(DataParallelTrainer):
    """Runs a function on a fixed number of workers."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if not isinstance(one, _UNUSED)]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        return super()._initialize_and_run_controller(
            **{**settings, "scaling_policy": FixedSize(scaling_config=self.scaling_config)}
        )


class FixedSize(FixedScalingPolicy):
    """As Ray's own, which also tells an actor for Ray Data what the workers need.

    Ray's autoscaler sees that from the placement group.
    """

    def after_controller_start(self, train_run_context: object) -> None:
        """Called by Ray's controller: no actor is needed."""

    def _maybe_send_resource_request(self) -> None:
        """Called by Ray's controller."""
