"""The control plane: from a YAML file to a running job."""
