"""The rights that each verb needs on Kubernetes, as Roles: nobody needs to read Secrets or to `exec` into a pod."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.kubernetes.yaml import Manifest
from cluster.profile import KubernetesProfile

_Rule = tuple[str, tuple[str, ...], tuple[str, ...]]  # API group, resources, verbs

_APPLY = ("get", "create", "patch")  # what `kubectl apply` asks for
_LOOK: tuple[_Rule, ...] = (
    ("ray.io", ("rayjobs",), ("get", "list")),
    ("", ("pods", "events"), ("get", "list")),
)
_READ: tuple[_Rule, ...] = (
    ("batch", ("jobs",), ("get", "list", "watch", "create", "delete")),
    ("", ("pods",), ("get", "list", "watch")),
    ("", ("pods/log",), ("get",)),
)

# What a verb does through the API server. `status` and `cancel --save` read and write the run's volume by a reader Job.
VERBS: Mapping[str, tuple[_Rule, ...]] = {
    "submit": (
        ("ray.io", ("rayjobs",), (*_APPLY, "delete")),  # an ended RayJob of the same name makes room
        ("", ("configmaps", "persistentvolumeclaims", "serviceaccounts"), _APPLY),
        ("networking.k8s.io", ("networkpolicies",), _APPLY),
        ("policy", ("poddisruptionbudgets",), _APPLY),
    ),
    "status": (*_LOOK, *_READ, ("kueue.x-k8s.io", ("workloads",), ("get", "list"))),
    "logs": _READ,
    "report": _READ,
    "list": _LOOK,
    "cancel": (
        ("ray.io", ("rayjobs",), ("get", "list", "delete")),
        ("", ("pods",), ("delete", "deletecollection")),  # --now
        *_READ,
    ),
}


def roles(profile: KubernetesProfile) -> list[Manifest]:
    """One Role a verb, in the profile's namespace; a RoleBinding is the site's own (docs/kubernetes.md)."""
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
