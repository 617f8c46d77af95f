"""From a run's needs to an sbatch script."""
