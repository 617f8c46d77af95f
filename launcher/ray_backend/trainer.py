"""Ray Train's trainer without the processes that a run of the launcher has no use for.

Each would be another process at the start, in part one after the other, and in part at every restart. The methods used
here are not public: where a version of Ray lacks one of them, it starts these processes as ever.
"""

from __future__ import annotations

from typing import Any

from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# Callbacks with processes for data sets of Ray Data, and for placement groups whose controller is killed: the driver
# removes those.
_UNUSED = ("DatasetsCallback", "PlacementGroupCleanerCallback")
# Methods with which the scaling policy tells an actor for Ray Data what the workers need. Ray's autoscaler sees that
# from the placement group, too.
_REQUESTS = ("after_controller_start", "_maybe_send_resource_request", "_cancel_resource_request")


class Trainer(DataParallelTrainer):
    """Runs a function on a fixed number of workers."""

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in _UNUSED]

    def _initialize_and_run_controller(self, **settings: Any) -> Any:
        policy = settings.get("scaling_policy")
        if all(hasattr(policy, name) for name in _REQUESTS):
            for name in _REQUESTS:
                setattr(policy, name, _do_nothing)
        return super()._initialize_and_run_controller(**settings)


def _do_nothing(*_: object) -> None:
    """Called by Ray's controller in place of a request."""
