#!/bin/bash
# Go through examples/aws/README.md against an emulator of AWS (moto), all but the cluster: the runner runs on this machine.
#
# Needs the aws CLI (any version; pip has one), `make zipapp`, and the development environment. Run by `make check-examples`.
set -eu -o pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
runner=$here/studio-runner.pyz
work=$(mktemp -d "${TMPDIR:-/tmp}/studio-runner-aws.XXXXXX")
pids=()
finish() {
  for pid in "${pids[@]}"; do
    kill "$pid" 2>/dev/null && wait "$pid" || true
  done
  rm -rf "$work"
}
trap finish EXIT
fail() {
  echo "check_aws: $*" >&2
  tail -n 20 "$work"/*.log >&2
  exit 1
}

aws=$(command -v aws) || fail "there is no aws: pip install awscli"
port=$("$here/.venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
endpoint=http://127.0.0.1:$port
"$here/.venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$work/moto.log" 2>&1 &
pids+=($!)
# The scripts know only AWS; this one sends what they ask elsewhere.
mkdir "$work/bin"
printf '#!/bin/sh\nexec %q --endpoint-url %q "$@"\n' "$aws" "$endpoint" >"$work/bin/aws"
chmod +x "$work/bin/aws"
export PATH=$work/bin:$PATH AWS_DEFAULT_REGION=us-west-2 AWS_ACCESS_KEY_ID=administrator AWS_SECRET_ACCESS_KEY=secret STUDIO_RUNNER_ROOT=$work/shiv
for _ in $(seq 50); do
  "$here/.venv/bin/python" -c "import urllib.request as r; r.urlopen('$endpoint/moto-api/')" 2>/dev/null && break || sleep 0.2
done

echo "--- create.sh, twice"
"$here/examples/aws/create.sh" demo
"$here/examples/aws/create.sh" demo >/dev/null

echo "--- keys"
cd "$work"
python3 "$runner" keys sqs_demo >/dev/null

echo "--- a runner, as the pods have it"
mkdir work
SQS_REGION=us-west-2 SQS_ENDPOINT=$endpoint WORKING_DIR=$work/work QUEUE_MATCH='^(rmq|sqs)_.*$' \
  python3 "$runner" --certs-dir certs >runner.log 2>&1 &
pids+=($!)

echo "--- an experiment, with an experimenter's keys"
read -r AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY < <(
  aws iam create-access-key --user-name demo-experimenter --query 'AccessKey.[AccessKeyId,SecretAccessKey]' --output text)
python3 "$runner" submit --sqs-region us-west-2 --sqs-endpoint "$endpoint" --queue sqs_demo \
  --store "s3://127.0.0.1:$port/demo-123456789012" \
  --encrypt client-keys/sqs_demo/runner_key.pem --sign client-keys/sqs_demo/signing_key \
  --requirement six --wait --timeout 3m --output results "$here/examples/aws/hello" hello.py you || fail "the experiment failed"
[ "$(cat results/modeldir/greeting.txt)" = "Hello, you" ] || fail "there is no greeting"
grep '^Hello, you, from' results/output/output
aws s3 ls --recursive "s3://demo-123456789012" | grep -q 'metadata/scrape-host' || fail "there is no metadata"
grep -q 'dead_sqs_demo' runner.log && fail "the runner takes work from the queue of dead letters"

echo "--- delete.sh"
AWS_ACCESS_KEY_ID=administrator AWS_SECRET_ACCESS_KEY=secret "$here/examples/aws/delete.sh" demo
[ -z "$(aws s3 ls)" ] || fail "there is a bucket still"
[ -z "$(aws iam list-roles --query 'Roles[].RoleName' --output text)" ] || fail "there is a role still"
echo "--- the example works"
