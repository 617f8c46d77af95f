"""Runs without Ray: in this process, under torchrun, or in a supervised child process."""
