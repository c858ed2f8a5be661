#!/bin/bash
# Install Apptainer for the tests: tools/install_apptainer.sh [PREFIX], as root on Debian.
#
# No stable Debian has it. This unpacks the package of Debian's unstable release into a directory of its own, with the C
# library that it was built for where this machine's is older; nothing else here is changed.
set -eu -o pipefail

prefix=${1:-/opt/apptainer}
[ ! -x "$prefix/bin/apptainer" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "Apptainer is missing. Install it, or run this as root on Debian." >&2
  exit 1
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
export DEBIAN_FRONTEND=noninteractive
packages=(squashfs-tools squashfuse fuse-overlayfs uidmap libseccomp2 libsqlite3-0 patchelf)
if ! { apt-get update -q && apt-get install -y -q --no-install-recommends "${packages[@]}"; } >"$work/log" 2>&1; then
  tail -n 30 "$work/log" >&2
  exit 1
fi

mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' 'Component: main' | head -n 1)
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror sid main" >"$work/sources.list"
sid=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null -o Dir::Etc::preferencesparts=/dev/null
  -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache" -o APT::Sandbox::User=root)
apt-get "${sid[@]}" update -qq
(cd "$work" && apt-get "${sid[@]}" download -qq apptainer libc6)
for package in apptainer libc6; do dpkg-deb -x "$work/${package}"_*.deb "$work/$package"; done

# The programs find their files by their own place, one directory too deep where Debian has them.
made=$work/made
mkdir -p "$made/var/lib/apptainer/mnt/session"
cp -a "$work/apptainer/usr/." "$made"
cp -a "$work/apptainer/etc" "$made"
ln -sfn ../var "$made/lib/var"
ln -sfn ../etc "$made/lib/etc"
starter=$(find "$made" -path '*/apptainer/bin/starter')
if [ "$(printf '2.38\n%s\n' "$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)" | sort -V | head -n 1)" != 2.38 ]; then
  mkdir "$made/glibc"
  cp -a "$work"/libc6/usr/lib/*-linux-gnu*/*.so* "$made/glibc"
  loader=$(basename "$(find "$made/glibc" -name 'ld-linux*')")
  patchelf --set-interpreter "$prefix/glibc/$loader" --set-rpath "$prefix/glibc" "$made/bin/apptainer" "$starter"
fi
mkdir -p "$(dirname "$prefix")"
mv "$made" "$prefix"
"$prefix/bin/apptainer" --version
