"""What the examples promise: names, options that exist, grace periods that fit.

Their form is checked by ``make check-examples``, with tools that are too large for every machine.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from runner.options.reading import variables_of
from runner.options.settings import Settings
from runner.storage.base import Denied
from runner.storage.connections import check
from runner.supervisor.stopping import STOP_PATIENCE
from runner.units import parse_duration
from tests.documents import PAGES, lines_of_code
from tests.e2e.harness import until
from tests.servers.rabbitmq import Broker

EXAMPLES = Path(__file__).parent.parent / "examples"
OPTIONS = {name for field in dataclasses.fields(Settings) for name in variables_of(field)}
# What programs other than the runner read.
FOREIGN = {"PIP_NO_CACHE_DIR", "HOME", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}


def documents(directory: str) -> list[dict[str, Any]]:
    files = sorted((EXAMPLES / directory).glob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def one(directory: str, kind: str, name: str = "") -> dict[str, Any]:
    (found,) = [
        each for each in documents(directory) if each["kind"] == kind and name in ("", each["metadata"]["name"])
    ]
    return found


def pod() -> dict[str, Any]:
    return dict(one("kubernetes/base", "Deployment")["spec"]["template"]["spec"])


def unit() -> Iterator[tuple[str, str]]:
    for line in (EXAMPLES / "systemd" / "studio-runner.service").read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            yield name, value


def test_a_pod_is_not_killed_before_it_has_drained() -> None:
    options = one("kubernetes/base", "ConfigMap", "studioml-env")["data"]
    assert pod()["terminationGracePeriodSeconds"] > parse_duration(options["GRACE_PERIOD"]) + STOP_PATIENCE


def test_compose_does_not_kill_the_runner_before_it_has_drained() -> None:
    class Loader(yaml.SafeLoader):
        """Knows the tags of compose files."""

    Loader.add_constructor("!reset", lambda loader, node: None)
    compose = yaml.load((EXAMPLES / "docker" / "docker-compose.yml").read_text(), Loader)
    runner = compose["services"]["runner"]
    grace = parse_duration(runner["environment"]["GRACE_PERIOD"])
    assert parse_duration(runner["stop_grace_period"]) > grace + STOP_PATIENCE
    for service in ("runner", "submit"):
        assert set(compose["services"][service]["environment"]) <= OPTIONS | FOREIGN


def test_systemd_does_not_kill_the_runner_before_it_has_drained() -> None:
    settings = dict(unit())
    variables = dict(word.split("=", 1) for word in settings["Environment"].split())
    assert set(variables) <= OPTIONS | FOREIGN
    minutes = int(settings["TimeoutStopSec"].removesuffix("min"))
    assert minutes * 60 > parse_duration(variables["GRACE_PERIOD"]) + STOP_PATIENCE
    assert settings["KillMode"] == "mixed"  # or experiments would be stopped with the runner


def test_the_variables_in_the_manifests_are_options_of_the_runner() -> None:
    for directory in ("kubernetes/base", "kubernetes/keda-sqs"):
        assert set(one(directory, "ConfigMap", "studioml-env")["data"]) <= OPTIONS | FOREIGN


def test_names_and_places_are_those_of_existing_deployments() -> None:
    places = {each["name"]: each["mountPath"] for each in pod()["containers"][0]["volumeMounts"]}
    secrets = {each["secret"]["secretName"]: places[each["name"]] for each in pod()["volumes"] if each.get("secret")}
    assert secrets == {
        "studioml-runner-key-secret": "/runner/certs/message/encryption",
        "studioml-runner-passphrase-secret": "/runner/certs/message/passphrase",
        "studioml-signing": "/runner/certs/queues/signing",
        "studioml-report-keys": "/runner/certs/queues/response-encrypt",
        "studioml-runner-aws-sqs": "/runner/certs/aws-sqs/default",
    }
    deployment = one("kubernetes/base", "Deployment")
    assert deployment["metadata"]["name"] == "studioml-go-runner-deployment"
    assert deployment["spec"]["selector"] == {"matchLabels": {"app": "studioml-go-runner"}}
    assert one("kubernetes/base", "ConfigMap", "studioml-go-runner")


def test_applying_manifests_again_neither_ends_runners_nor_a_suspension() -> None:
    """`kubectl apply` puts back what is written in them, and leaves the rest."""
    assert "replicas" not in one("kubernetes/base", "Deployment")["spec"]
    assert "data" not in one("kubernetes/base", "ConfigMap", "studioml-go-runner")


def test_the_network_policy_keeps_experiments_from_where_the_runner_does_not_go_for_them() -> None:
    policy = one("kubernetes/network-policy", "NetworkPolicy")["spec"]
    assert policy["podSelector"] == one("kubernetes/base", "Deployment")["spec"]["selector"]
    kept = [ip_network(each) for peer in policy["egress"][0]["to"] for each in peer["ipBlock"]["except"]]
    for address in ("169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "fe80::1"):
        assert any(ip_address(address) in network for network in kept)
        with pytest.raises(Denied):
            check(address)


def test_pods_may_read_configmaps_and_nothing_else() -> None:
    (rule,) = one("kubernetes/base", "ClusterRole", "studioml-role")["rules"]
    assert (rule["apiGroups"], rule["resources"], rule["verbs"]) == ([""], ["configmaps"], ["get", "list", "watch"])
    binding = one("kubernetes/base", "RoleBinding", "studioml-role-bind")
    assert binding["roleRef"]["name"] == "studioml-role"
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "studioml-account"}]
    assert pod()["serviceAccountName"] == "studioml-account"


def test_containers_may_do_no_more_than_they_need() -> None:
    dockerfile = (EXAMPLES.parent / "Dockerfile").read_text()
    user = pod()["securityContext"]["runAsUser"]
    assert f"USER {user}:{user}" in dockerfile
    assert pod()["securityContext"]["runAsNonRoot"]
    security = pod()["containers"][0]["securityContext"]
    assert security["readOnlyRootFilesystem"]
    assert not security["allowPrivilegeEscalation"]
    assert security["capabilities"] == {"drop": ["ALL"]}


@pytest.mark.parametrize(
    ("directory", "kind"),
    [("keda-rabbitmq", "ScaledObject"), ("keda-rabbitmq-jobs/template", "ScaledJob"), ("keda-sqs", "ScaledObject")],
)
def test_keda_counts_the_messages_that_runners_hold(directory: str, kind: str) -> None:
    (trigger,) = one(f"kubernetes/{directory}", kind)["spec"]["triggers"]
    if trigger["type"] == "rabbitmq":
        assert trigger["metadata"]["protocol"] == "http"
        assert trigger["metadata"]["excludeUnacknowledged"] == "false"
    else:
        assert trigger["metadata"]["scaleOnInFlight"] == "true"


def test_rabbitmq_tells_keda_of_work_and_not_of_reports(rabbitmq: Broker) -> None:
    queue = rabbitmq.declare("rmq_work")
    rabbitmq.declare("rmq_work_response")
    for name in (queue, queue, f"{queue}_response"):
        rabbitmq.publish(name, b"{}")
    trigger = one("kubernetes/keda-rabbitmq", "ScaledObject")["spec"]["triggers"][0]["metadata"]
    asked, most = trigger["queueName"], trigger["pageSize"]
    # As KEDA's scaler asks, see getQueueInfo in its rabbitmq_scaler.go.
    query = f"queues/%2F?page=1&use_regex=true&pagination=false&name={quote(asked, safe='')}&page_size={most}"

    def counted() -> int:
        return sum(each.get("messages", 0) for each in rabbitmq.api("GET", query).json()["items"])

    with rabbitmq.connect() as connection:
        held, _, _ = connection.channel().basic_get(queue)
        assert held
        until(lambda: counted() == 2, "both are counted, the one that is held too")


def test_keda_does_not_end_jobs_that_run() -> None:
    spec = one("kubernetes/keda-rabbitmq-jobs/template", "ScaledJob")["spec"]
    assert spec["rollout"] == {"strategy": "gradual"}
    assert spec["jobTargetRef"]["backoffLimit"] == 0
    assert "activeDeadlineSeconds" not in spec["jobTargetRef"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl to build manifests with")
@pytest.mark.parametrize("directory", ["kubernetes/keda-rabbitmq-jobs", "kubernetes/keda-sqs-jobs", "aws/kubernetes"])
def test_jobs_are_the_deployment_s_pods_and_end_by_themselves(directory: str) -> None:
    built = subprocess.run(["kubectl", "kustomize", EXAMPLES / directory], capture_output=True, check=True).stdout
    things = {each["kind"]: each for each in yaml.safe_load_all(built)}
    assert "Deployment" not in things
    template = things["ScaledJob"]["spec"]["jobTargetRef"]["template"]["spec"]
    assert template["restartPolicy"] == "Never"
    assert template["containers"][0]["livenessProbe"] == pod()["containers"][0]["livenessProbe"]
    assert {each["name"] for each in template["containers"][0]["env"]} == {"LIMIT_IDLE_DURATION", "LIMIT_INTERVAL"}
    (trigger,) = things["ScaledJob"]["spec"]["triggers"]
    assert trigger["authenticationRef"]["name"] == things["TriggerAuthentication"]["metadata"]["name"]


TYPED = sorted({line for page in PAGES for line in lines_of_code(page) if line.startswith("kubectl ")})


@pytest.mark.skipif(not shutil.which("kubectl"), reason="there is no kubectl to try its commands with")
@pytest.mark.parametrize("line", [line for line in TYPED if " -k " not in line])
def test_kubectl_does_what_is_to_be_typed(line: str, tmp_path: Path) -> None:
    words = [*shlex.split(line), "-o", "json"]
    if "patch" in words:
        (tmp_path / "map.yaml").write_text(yaml.safe_dump(one("kubernetes/base", "ConfigMap", words[3])))
        words[2:4] = ["--local", "-f", str(tmp_path / "map.yaml")]
        made = subprocess.run(words, capture_output=True, check=True).stdout
        assert json.loads(made)["data"] == {"STATE": "DrainAndSuspend"}
    else:
        made = subprocess.run([*words, "--dry-run=client"], capture_output=True, check=True).stdout
        assert json.loads(made)["metadata"]["name"] == words[4]


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*/*.sh")), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_scripts_can_be_read_by_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
