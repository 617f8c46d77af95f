"""SLURM and Kubernetes: what a run needs of them; submitting, querying and stopping jobs."""
