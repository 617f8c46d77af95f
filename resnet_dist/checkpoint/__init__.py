"""The run's state on disk: complete or absent, hashed, the same for every engine.

`save.save` writes a checkpoint, `restore.newest` finds the newest one that can be trusted. Neither name is imported
here, so that `format` and `disk`, which need no torch, can be read without it.
"""
