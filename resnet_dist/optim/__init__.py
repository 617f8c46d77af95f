"""Optimizers, their parameter groups, and the learning rate as a function of the step."""

from resnet_dist.optim.factory import build_optimizer, sgd_kernels
from resnet_dist.optim.groups import decay_groups
from resnet_dist.optim.lars import Lars, squared_norms, trust_ratios, update_weights
from resnet_dist.optim.schedule import Corner, Schedule, build_schedule

__all__ = [
    "Corner",
    "Lars",
    "Schedule",
    "build_optimizer",
    "build_schedule",
    "decay_groups",
    "sgd_kernels",
    "squared_norms",
    "trust_ratios",
    "update_weights",
]
