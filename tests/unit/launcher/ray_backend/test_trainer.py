"""Ray Train's trainer with fewer processes. Its controller is not started."""

from __future__ import annotations

from typing import Any

import pytest
from ray import cloudpickle
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.execution.scaling_policy import create_scaling_policy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from launcher.ray_backend.trainer import Trainer


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Ray's trainer hands to its controller."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(
        DataParallelTrainer, "_initialize_and_run_controller", lambda self, **settings: found.update(settings)
    )
    return found


def trainer() -> Trainer:
    return Trainer(lambda: None, scaling_config=ScalingConfig(num_workers=2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Ray Data's, when the settings are copied
def test_no_processes_for_data_sets_and_placement_groups(started: dict[str, Any]) -> None:
    names = {type(one).__name__ for one in trainer()._create_default_callbacks()}
    assert names >= {"BackendSetupCallback", "AcceleratorSetupCallback", "UserCallbackHandler"}
    assert not names & {"DatasetsCallback", "PlacementGroupCleanerCallback"}
    all_names = {type(one).__name__ for one in DataParallelTrainer._create_default_callbacks(trainer())}
    assert all_names - names == {"DatasetsCallback", "PlacementGroupCleanerCallback"}


def test_the_scaling_policy_asks_no_actor_and_decides_as_ray_does(started: dict[str, Any]) -> None:
    policy = create_scaling_policy(ScalingConfig(num_workers=2))
    trainer()._initialize_and_run_controller(scaling_policy=policy, failure_policy=FailureConfig())
    policy = cloudpickle.loads(cloudpickle.dumps(started["scaling_policy"]))
    policy.after_controller_start(None)  # would need a cluster
    policy.before_controller_abort()
    assert policy.make_decision_for_non_running_worker_group().num_workers == 2
    assert "failure_policy" in started


def test_a_policy_with_other_methods_is_left_as_it_is(started: dict[str, Any]) -> None:
    class Policy:
        def after_controller_start(self) -> str:
            return "asks"

    trainer()._initialize_and_run_controller(scaling_policy=Policy())
    assert started["scaling_policy"].after_controller_start() == "asks"
    trainer()._initialize_and_run_controller()
