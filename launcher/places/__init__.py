"""SLURM and Kubernetes: what a run asks of them, and how a job is asked for and stopped."""
