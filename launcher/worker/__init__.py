"""The launcher's part of a training process: checks before training, supervision, watchdog."""
