#!/bin/bash
# Build the image as a user would, and run an experiment in it as in production: tools/check_image.sh [gpu]
#
# Needs docker or podman; on Debian as root it installs podman. Where no registry can be reached, the base image is made of
# Debian's packages (mmdebstrap), with the content of debian:bookworm-slim. Run by `make check-image`; takes some minutes.
set -eu -o pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
target=${1:-cpu}
base=docker.io/library/debian:bookworm-slim
image=studio-runner-check:$target
work=$(mktemp -d "${TMPDIR:-/tmp}/studio-runner-image.XXXXXX")
container=
finish() {
  [ -z "$container" ] || "$engine" rm -f "$container" >/dev/null
  rm -rf "$work"
}
trap finish EXIT

say() { echo "--- $*"; }
fail() {
  echo "check_image: $*" >&2
  [ -z "$container" ] || "$engine" logs "$container" >&2
  exit 1
}

engine=docker build=()
if ! docker info >/dev/null 2>&1; then
  engine=podman build=(--format docker --network host)
  if ! command -v podman >/dev/null || ! command -v runc >/dev/null; then
    apt-get update -q >/dev/null
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends podman buildah runc mmdebstrap >/dev/null
  fi
  # Podman's defaults want systemd, a bridge, and more open files than a container of its own may have.
  cat >"$work/containers.conf" <<EOF
[containers]
default_ulimits = ["nofile=$(ulimit -Sn):$(ulimit -Hn)", "nproc=1024:1024"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
EOF
  export CONTAINERS_CONF=$work/containers.conf
fi

if ! "$engine" image inspect "$base" >/dev/null 2>&1 && ! "$engine" pull -q "$base" >/dev/null 2>&1; then
  say "no registry: making $base of Debian's packages"
  mmdebstrap --quiet --variant=minbase bookworm "$work/base.tar"
  "$engine" import "$work/base.tar" "$base" >/dev/null
  rm "$work/base.tar"
fi

say "building $image"
"$engine" build "${build[@]}" -q --target "$target" --build-arg "BASE=$base" -t "$image" "$here" >/dev/null

mkdir -p "$work"/{code,queues/local_check,store,results}
cat >"$work/code/main.py" <<'EOF'
import os, sys
print("user", os.getuid(), "Python", sys.version_info[:2])
open("/tmp/scratch", "w").close()
for path in ("/etc/x", "/usr/local/lib/studio-runner/x", "/runner/x"):
    try:
        open(path, "w")
        sys.exit(f"{path} can be written")
    except OSError as error:
        print(path, error.strerror)
open("../modeldir/model", "w").write("a model")
EOF
chmod -R a+rwX "$work"
shared=(--volume "$work:$work" --env "QUEUE_ROOT=$work/queues" --network host)
# As in examples/kubernetes: no root, no capability, nothing to gain, nothing to write to.
locked=(--no-healthcheck --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges)

say "starting it: $("$engine" image inspect --format '{{.Size}} bytes, user {{.Config.User}}' "$image")"
container=$("$engine" run --detach "${locked[@]}" "${shared[@]}" --env CLEAR_TEXT_MESSAGES=true --env "FILE_ROOT=$work/store" "$image")

say "submitting an experiment"
"$engine" run --rm "${locked[@]}" "${shared[@]}" --workdir "$work" "$image" submit --queue local_check --store "file://$work/store" \
  --key check --output "$work/results/check" --wait --timeout 3m code main.py || fail "the experiment failed: status $?"
[ "$(cat "$work/results/check/modeldir/model")" = "a model" ] || fail "there is no model"
grep '^user 10001' "$work/results/check/output/output" || fail "the experiment ran as somebody else"

if ! "$engine" run --rm "${locked[@]}" --network host "$image" --help | grep -A1 -e --prom-address | grep -q 'not in this version'; then
  say "asking for its health"
  "$engine" image inspect "$image" >"$work/image.json"
  mapfile -d '' -t test < <(python3 - "$work/image.json" <<'EOF'
import json, sys
image = json.load(open(sys.argv[1]))[0]
check = image.get("Healthcheck") or image["Config"]["Healthcheck"]  # podman has it at the top
print(*check["Test"][1:], sep="\0", end="\0")
EOF
  )
  "$engine" exec "$container" "${test[@]}" || fail "it is not healthy"
fi

say "stopping it"
began=$SECONDS
"$engine" stop --time 60 "$container" >/dev/null
status=$("$engine" inspect --format '{{.State.ExitCode}}' "$container")
[ "$status" = 0 ] || fail "it ended with status $status"
[ $((SECONDS - began)) -lt 30 ] || fail "an idle runner took $((SECONDS - began)) s to stop"
say "the image works"
