"""A real kube-apiserver with its etcd, on loopback: no kubelet and no controllers, so a pod's files are made here.

Debian does not package it: RUNNER_TESTS_KUBE_APISERVER names a binary, say one out of a release of Kubernetes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.servers.kubernetes import NAMESPACE, ApiServer, started
from tests.servers.starting import StartError, free_ports, wait

ACCOUNT = "studioml-account"
_MANIFEST = Path(__file__).parent.parent.parent / "examples" / "kubernetes" / "base" / "account.yaml"
_ADMIN = "admin-token"
_RBAC = "/apis/rbac.authorization.k8s.io/v1"


class Cluster:
    """ConfigMaps of one namespace, and a service account that may read them by the manifests of examples/."""

    def __init__(self, program: str, root: Path) -> None:
        self.root, self._program = root, program
        self._port, self._etcd_port, peer = free_ports(3)
        self._key = root / "account.key"
        key = rsa.generate_private_key(65537, 2048)
        pem = serialization.PrivateFormat.TraditionalOpenSSL
        self._key.write_bytes(key.private_bytes(serialization.Encoding.PEM, pem, serialization.NoEncryption()))
        (root / "tokens.csv").write_text(f'{_ADMIN},admin,admin,"system:masters"\n')
        client, other = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, peer))
        self._etcd = self._spawn(
            "etcd",
            *("--data-dir", str(root / "etcd"), "--unsafe-no-fsync", "--initial-cluster", f"default={other}"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", other, "--initial-advertise-peer-urls", other),
        )
        self._server: subprocess.Popen[bytes] | None = None
        self.start()
        self.ask("POST", "/api/v1/namespaces", {"metadata": {"name": NAMESPACE}})
        for thing in yaml.safe_load_all(_MANIFEST.read_text()):
            self.ask("POST", self._place(thing), thing)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._port}"

    @property
    def environ(self) -> dict[str, str]:
        """What a pod's environment says of it."""
        return {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self._port),
            "HOSTNAME": "pod-1",
        }

    # The server

    def start(self) -> None:
        keys = [f"--service-account-{use}key-file={self._key}" for use in ("", "signing-")]
        self._server = self._spawn(
            self._program,
            f"--etcd-servers=http://127.0.0.1:{self._etcd_port}",
            *("--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", f"--secure-port={self._port}"),
            *(f"--cert-dir={self.root}/certificates", f"--token-auth-file={self.root}/tokens.csv"),
            *("--authorization-mode=RBAC", "--anonymous-auth=false", "--disable-admission-plugins=ServiceAccount"),
            *("--service-account-issuer=https://kubernetes.default.svc", *keys),
            *("--service-cluster-ip-range=10.96.0.0/16", "--endpoint-reconciler-type=none"),
        )
        wait(self._serves, seconds=120)

    def stop(self) -> None:
        """Kill the API server; what it knows stays in etcd. Asked nicely, it would wait a minute for watches to end."""
        if self._server:
            self._server.kill()
            self._server.wait()
            self._server = None

    def end(self) -> None:
        for process in filter(None, (self._server, self._etcd)):
            process.kill()
            process.wait()

    def compact(self) -> None:
        """Let etcd forget all but the present, as it is told to every few minutes."""
        head = self._etcdctl("range", {"key": "AA=="})
        self._etcdctl("compaction", {"revision": head["header"]["revision"], "physical": True})

    # What is in it

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str = _ADMIN) -> Any:
        """Do something as an administrator, and return what comes back."""
        answer = requests.request(
            method,
            f"{self.url}{path}",
            json=body,
            headers={
                "Authorization": f"Bearer {token}",
                "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
            },
            verify=self._authority,
            timeout=30,
        )
        if not answer.ok:
            raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer.json()

    def put(self, name: str, state: str | None) -> None:
        """``kubectl apply`` of a ConfigMap; without a state: with other data."""
        where = f"/api/v1/namespaces/{NAMESPACE}/configmaps"
        thing = {"metadata": {"name": name}, "data": {"STATE": state, "other": "x"}}
        if name in [each["metadata"]["name"] for each in self.ask("GET", where)["items"]]:
            self.ask("PATCH", f"{where}/{name}", thing)
        else:
            thing["data"] = {key: value for key, value in thing["data"].items() if value}
            self.ask("POST", where, thing)

    def delete(self, name: str) -> None:
        """``kubectl delete configmap``."""
        self.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{name}")

    def clear(self) -> None:
        """Delete all ConfigMaps."""
        self.ask("DELETE", f"/api/v1/namespaces/{NAMESPACE}/configmaps")

    def permit(self, *verbs: str) -> None:
        """Let service accounts do no more than that with ConfigMaps."""
        rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]
        self.ask("PATCH", f"{_RBAC}/clusterroles/studioml-role", {"rules": rules if verbs else []})

    def mount(self, directory: Path) -> Path:
        """Put into a directory what the kubelet puts into pods of the account, with a new token."""
        (directory / "token").write_text(self.token())
        shutil.copy(self._authority, directory / "ca.crt")
        (directory / "namespace").write_text(NAMESPACE)
        return directory

    def token(self) -> str:
        """A token of the account, bound and for ten minutes: the server makes none for less."""
        where = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts/{ACCOUNT}/token"
        made = self.ask("POST", where, {"spec": {"expirationSeconds": 600}})
        return str(made["status"]["token"])

    def renew_account(self) -> None:
        """Delete the service account and make it again: tokens of the old one are worth nothing then."""
        where = f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts"
        self.ask("DELETE", f"{where}/{ACCOUNT}")
        self.ask("POST", where, {"metadata": {"name": ACCOUNT}})

    @property
    def _authority(self) -> str:
        return str(self.root / "certificates" / "apiserver.crt")

    def _place(self, thing: dict[str, Any]) -> str:
        places = {
            "ServiceAccount": f"/api/v1/namespaces/{NAMESPACE}/serviceaccounts",
            "ClusterRole": f"{_RBAC}/clusterroles",
            "RoleBinding": f"{_RBAC}/namespaces/{NAMESPACE}/rolebindings",
        }
        return places[thing["kind"]]

    def _serves(self) -> bool:
        for name, process in (("etcd", self._etcd), (Path(self._program).name, self._server)):
            if process is not None and process.poll() is not None:
                output = (self.root / f"{name}.out").read_text(errors="replace")
                raise StartError(f"{name} ended with status {process.returncode}: {output[-1000:]}")
        try:
            return requests.get(
                f"{self.url}/readyz", headers={"Authorization": f"Bearer {_ADMIN}"}, verify=self._authority, timeout=5
            ).ok
        except OSError:
            return False

    def _etcdctl(self, what: str, body: dict[str, Any]) -> Any:
        return requests.post(f"http://127.0.0.1:{self._etcd_port}/v3/kv/{what}", json=body, timeout=30).json()

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a process that the kernel kills when this one dies, however it dies."""
        bound = ("setpriv", "--pdeathsig", "KILL", *command) if shutil.which("setpriv") else command
        with (self.root / f"{Path(command[0]).name}.out").open("ab") as output:
            return subprocess.Popen(bound, stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=self.root)


class RealApi:
    """A real API server, with the service account of one pod. It has no maps in the beginning and in the end."""

    def __init__(self, cluster: Cluster, account: Path) -> None:
        self.cluster, self.account, self.environ = cluster, cluster.mount(account), cluster.environ
        self.put, self.delete, self.permit = cluster.put, cluster.delete, cluster.permit

    def cut(self) -> None:
        self.cluster.stop()
        self.cluster.start()

    def forget(self) -> None:
        self.cluster.stop()
        self.cluster.compact()
        self.cluster.start()

    def renew_token(self) -> None:
        self.cluster.renew_account()
        self.cluster.mount(self.account)

    def close(self) -> None:
        self.permit("get", "list", "watch")
        self.cluster.clear()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The server; tests that change what its account may do change it back."""
    program = os.environ.get("RUNNER_TESTS_KUBE_APISERVER")
    if not program:
        pytest.skip("no Kubernetes to test against: let RUNNER_TESTS_KUBE_APISERVER name a kube-apiserver")
    if shutil.which("etcd") is None:
        pytest.skip("no etcd for the kube-apiserver to test against (apt-get install etcd-server)")
    made = Cluster(program, tmp_path_factory.mktemp("cluster"))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(params=["imitated", pytest.param("real", marks=pytest.mark.servers)])
def any_api(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ApiServer | RealApi]:
    """Both: what holds for the imitation holds for a real server."""
    account = tmp_path / "account"
    account.mkdir()
    if request.param == "imitated":
        with started(account) as imitation:
            yield imitation
        return
    real = RealApi(request.getfixturevalue("cluster"), account)
    yield real
    real.close()
