"""The data plane: the work of one training process. Needs only torch and torchvision."""
