"""The Kubernetes permissions of each verb, as Roles. None includes Secrets or `exec`."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile

_Rule = tuple[str, tuple[str, ...], tuple[str, ...]]  # API group, resources, verbs

_APPLY = ("get", "create", "patch")  # verbs that `kubectl apply` uses
_LOOK: tuple[_Rule, ...] = (
    ("ray.io", ("rayjobs",), ("get", "list")),
    ("", ("pods", "events"), ("get", "list")),
)
_READ: tuple[_Rule, ...] = (
    ("batch", ("jobs",), ("get", "list", "watch", "create", "delete")),
    ("", ("pods",), ("get", "list", "watch")),
    ("", ("pods/log",), ("get",)),
)

# Calls of each verb to the API server. `status` and `cancel --save` read and write the run's volume in a reader Job.
VERBS: Mapping[str, tuple[_Rule, ...]] = {
    "submit": (
        ("ray.io", ("rayjobs",), (*_APPLY, "delete")),  # an ended RayJob of the same name is deleted first
        ("", ("configmaps", "persistentvolumeclaims", "serviceaccounts"), _APPLY),
        ("networking.k8s.io", ("networkpolicies",), _APPLY),
        ("policy", ("poddisruptionbudgets",), _APPLY),
    ),
    "status": (*_LOOK, *_READ, ("kueue.x-k8s.io", ("workloads",), ("get", "list"))),
    "logs": _READ,
    "report": _READ,
    "watch": _READ,
    "list": _LOOK,
    "cancel": (
        ("ray.io", ("rayjobs",), ("get", "list", "delete")),
        ("", ("pods",), ("delete", "deletecollection")),  # --now
        *_READ,
    ),
}


def roles(profile: KubernetesProfile) -> list[Manifest]:
    """One Role per verb, in the profile's namespace. cluster/kustomize binds them to a group."""
    return [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "Role",
            "metadata": {
                "name": f"resnet-launcher-{verb}",
                "namespace": profile.namespace,
                "annotations": {"kubernetes.io/description": f"What launcher {verb} needs"},
            },
            "rules": [
                {"apiGroups": [group], "resources": list(resources), "verbs": list(verbs)}
                for group, resources, verbs in rules
            ],
        }
        for verb, rules in VERBS.items()
    ]
