"""Attempts on this machine, in child processes or in torchrun's group, without Ray."""
