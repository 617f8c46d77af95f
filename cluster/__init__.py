"""From a run's needs to sbatch scripts and RayJob manifests. Text in, text out."""
