"""The run's state on disk: complete or absent, hashed, the same for every engine."""
