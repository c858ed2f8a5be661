#!/bin/bash
# Install what a fresh Debian machine lacks: tools/install.sh python|servers. Needs root only when something is missing.
set -eu -o pipefail

need() { # need PROGRAM-OR-TEST PACKAGE...: install the packages when the test fails
  local test=$1
  shift
  eval "$test" >/dev/null 2>&1 || missing+=("$@")
}

missing=()
case ${1:-} in
python)
  need 'python3 -c "import sys; assert sys.version_info >= (3, 10)"' python3
  need 'python3 -c "import ensurepip, venv"' python3-venv
  need 'test -e /etc/ssl/certs/ca-certificates.crt' ca-certificates
  ;;
servers)
  need 'test -x /usr/sbin/rabbitmq-server' rabbitmq-server
  for package in radosgw ceph-mon ceph-osd; do need "command -v $package" "$package"; done
  need 'command -v ceph && command -v radosgw-admin' ceph-common
  for service in proxy account container object; do need "command -v swift-$service-server" "swift-$service"; done
  need 'command -v memcached' memcached
  need 'command -v openssl' openssl
  need 'command -v git' git
  need 'command -v mmdebstrap' mmdebstrap
  need 'command -v docker-registry' docker-registry
  ;;
*)
  echo "usage: $0 python|servers" >&2
  exit 2
  ;;
esac
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}. Install them (apt-get install ${missing[*]}), or run this as root on Debian." >&2
  exit 1
fi

echo "installing ${missing[*]}"
# The tests start servers of their own: those of the packages are not to be started.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  printf '#!/bin/sh\nexit 101\n' >$policy
  chmod +x $policy
  trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  exit 1
fi
rm -f "$log"
