#!/usr/bin/env bash
# Installs the Debian packages that are missing, and does nothing at all if none is.
#
#   scripts/deps.sh run     what banger needs
#   scripts/deps.sh test    that, and what its tests need
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
missing=()

# need PROGRAM-OR-FILE PACKAGE
need() {
  if [[ $1 == /* ]]; then
    [[ -e $1 ]] && return
  elif command -v "$1" >/dev/null; then
    return
  fi
  missing+=("$2")
}

need qemu-system-x86_64 qemu-system-x86
need mmdebstrap mmdebstrap
need mke2fs e2fsprogs
need git git
need /usr/share/keyrings/debian-archive-keyring.gpg debian-archive-keyring
if ((EUID != 0)); then
  need newuidmap uidmap # mmdebstrap unpacks packages in a user namespace
fi

case ${1:-} in
  run) ;;
  test)
    need make make
    need tmux tmux
    need busybox busybox-static
    need gcc gcc # the race detector needs it, and the C library's headers
    need /usr/include/stdlib.h libc6-dev
    need umoci umoci # other people's images and what they make of them
    need skopeo skopeo
    need setcap libcap2-bin
    need ssh openssh-client # the clients that people have
    need rsync rsync
    need buildah buildah
    ;;
  *) echo "usage: scripts/deps.sh run|test" >&2; exit 2 ;;
esac

((${#missing[@]})) || exit 0

if ! command -v apt-get >/dev/null; then
  echo "missing, and there is no apt-get to install it with: ${missing[*]} (names of Debian packages)" >&2
  exit 1
fi

as_root=()
if ((EUID != 0)); then
  as_root=(sudo)
  [[ -t 0 ]] || as_root+=(--non-interactive)
fi
apt() {
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"
}

echo "installing ${missing[*]}" >&2
install=(install --yes --no-install-recommends "${missing[@]}")
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# The lists of packages may be missing or old: fetch them only if it does not work without.
if ! apt "${install[@]}" >"$log" 2>&1; then
  if ! { apt update && apt "${install[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "could not install: ${missing[*]}" >&2
    exit 1
  fi
fi
