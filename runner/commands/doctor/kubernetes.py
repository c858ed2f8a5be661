"""Whether the pod's service account may read what Kubernetes says of the runner's state."""

from __future__ import annotations

from collections.abc import Iterator

from runner.commands.doctor.base import Finding, Subject, fail, ok


def rights(subject: Subject) -> Iterator[Finding]:
    """List and watch ConfigMaps, as the runner does; outside a pod there is nothing to look at."""
    if not subject.environ.get("KUBERNETES_SERVICE_HOST"):
        return
    from runner.supervisor import kubernetes  # noqa: PLC0415 -- only in a pod

    pod = kubernetes.Pod.of(subject.environ, subject.settings.k8s_namespace)
    common = subject.settings.k8s_configmap
    asked = {"list": {"fieldSelector": f"metadata.name={common}"}, "watch": {"watch": "true", "timeoutSeconds": "1"}}
    for verb, parameters in asked.items():
        try:
            pod.ask(parameters, stream=verb == "watch").close()
        except kubernetes.Trouble as trouble:
            yield fail(
                f"cannot {verb} ConfigMaps: {trouble}", "see the ClusterRole and RoleBinding of the service account"
            )
            return
    yield ok(f"ConfigMaps {common} and {pod.name} of namespace {pod.namespace} can be listed and watched")
