"""Whether the pod's service account may read what Kubernetes says of the runner's state, and what that is."""

from __future__ import annotations

from collections.abc import Iterator

from runner.commands.doctor.base import Finding, Subject, fail, ok, warn


def rights(subject: Subject) -> Iterator[Finding]:
    """List and watch both ConfigMaps, as the runner does; outside a pod there is nothing to look at."""
    if not subject.environ.get("KUBERNETES_SERVICE_HOST"):
        return
    from runner.supervisor import kubernetes  # noqa: PLC0415 -- only in a pod
    from runner.supervisor.api_server import Pod, Refused, Trouble  # noqa: PLC0415

    pod = Pod.of(subject.environ, subject.settings.k8s_namespace)
    names = (pod.name, subject.settings.k8s_configmap)
    states: dict[str, str | None] = {}
    for name in names:
        try:
            states[name], _ = kubernetes.read(pod, name)
            pod.configmaps(name, {"watch": "true", "timeoutSeconds": "1"}).close()
        except Trouble as trouble:
            verb = "watch" if name in states else "list"
            refused = isinstance(trouble, Refused)
            yield fail(
                f"cannot {verb} ConfigMap {name}: {trouble}",
                "see the ClusterRole and RoleBinding of the service account" if refused else "",
            )
            return
    yield ok(f"ConfigMaps {names[1]} and {pod.name} of namespace {pod.namespace} can be listed and watched")
    if suspending := kubernetes.suspending(names, states):
        yield warn(f"ConfigMap {suspending} says DrainAndSuspend: no work is taken", "set its STATE to Running")
