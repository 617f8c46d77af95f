"""The training loop: steps, evaluation, checkpoints in time."""
