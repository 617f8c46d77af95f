"""The files of a run: paths, lease, heartbeats, attempts, status."""
