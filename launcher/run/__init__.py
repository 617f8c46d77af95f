"""Everything on disk of a run: paths, lease, heartbeats, attempts, status."""
