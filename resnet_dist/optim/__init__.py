"""Optimizers, their parameter groups, and the learning rate as a function of the step."""

from resnet_dist.optim.factory import build_optimizer, sgd_kernels
from resnet_dist.optim.groups import decay_groups, write_learning_rate
from resnet_dist.optim.lamb import Lamb
from resnet_dist.optim.lars import Lars, trust_ratios, update_weights
from resnet_dist.optim.layerwise import LayerwiseOptimizer, squared_norms
from resnet_dist.optim.penalties import add_decoupled_decay, add_l1
from resnet_dist.recipe.schedule import Corner, Schedule, build_schedule

__all__ = [
    "Corner",
    "Lamb",
    "Lars",
    "LayerwiseOptimizer",
    "Schedule",
    "add_decoupled_decay",
    "add_l1",
    "build_optimizer",
    "build_schedule",
    "decay_groups",
    "sgd_kernels",
    "squared_norms",
    "trust_ratios",
    "update_weights",
    "write_learning_rate",
]
