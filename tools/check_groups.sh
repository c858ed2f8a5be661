#!/bin/bash
# Run the tests of control groups (tests/e2e/test_groups.py) in a kernel of their own: tools/check_groups.sh
#
# It is User Mode Linux, a program (Debian: user-mode-linux, which is installed as root where it is missing): it sees this
# machine's files, and has control groups of version 2 to itself whatever this machine has. Run by `make check-groups`;
# takes about a minute.
set -eu -o pipefail

here=$(cd "$(dirname "$0")/.." && pwd)
if ! command -v linux.uml >/dev/null; then
  apt-get update -q >/dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends user-mode-linux >/dev/null
fi
work=$(mktemp -d "${TMPDIR:-/tmp}/studio-runner-groups.XXXXXX")
trap 'rm -rf "$work"' EXIT

mkdir "$work/home" "$work/tmp"
cat >"$work/init" <<EOF
#!/bin/bash
export PATH=$PATH HOME=$work/home TMPDIR=$work/tmp
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 none /sys/fs/cgroup
mount -t tmpfs none /run
cd "$here"
RUNNER_TESTS_PROGRAM=studio-runner.pyz .venv/bin/pytest -p no:cacheprovider -ra --basetemp=$work/tmp/pytest tests/e2e/test_groups.py
echo \$? >"$work/status"
echo o >/proc/sysrq-trigger
sleep 60
EOF
chmod +x "$work/init"
timeout 900 linux.uml rootfstype=hostfs rw mem=3G quiet loglevel=1 init="$work/init" con=null con0=fd:0,fd:1 </dev/null
[ "$(cat "$work/status")" = 0 ]
