"""Checkpoints on disk: complete or absent, hashed, and independent of the engine and the number of workers.

`save.write` writes a checkpoint, `restore.newest` finds the newest one that is intact. This module imports neither, so
that `format` and `disk`, which need no torch, can be imported without it.
"""
