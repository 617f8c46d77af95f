"""Conformance suites for models, optimizers, engines and decoders of the user.

    from resnet_dist.testing import check_engine, check_model, check_optimizer
    def test_my_parts_conform():
        check_engine(my_package.engine)
        check_optimizer(my_package.optimizer)
        check_model(my_package.model)

Each raises an AssertionError that names the requirement that is not met.
"""

from __future__ import annotations

from resnet_dist.testing.decoder import check_decoder
from resnet_dist.testing.engine import check_engine
from resnet_dist.testing.model import check_model
from resnet_dist.testing.optimizer import check_optimizer

__all__ = ["check_decoder", "check_engine", "check_model", "check_optimizer"]
