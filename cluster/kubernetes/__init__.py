"""From a run's needs to KubeRay manifests."""
