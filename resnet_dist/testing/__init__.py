"""Conformance suites: what a part of your own must do to take the place of one of ours.

    from resnet_dist.testing import check_engine, check_model
    def test_my_parts_conform():
        check_engine(my_package.engine)
        check_model(my_package.model)

Each raises AssertionError that names the promise which is broken.
"""

from __future__ import annotations

from resnet_dist.testing.decoder import check_decoder
from resnet_dist.testing.engine import check_engine
from resnet_dist.testing.model import check_model

__all__ = ["check_decoder", "check_engine", "check_model"]
