"""What is measured of a run: step totals, times, memory, liveness, metrics files."""
