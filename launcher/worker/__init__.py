"""What runs inside a training process beside the data plane."""
