#!/usr/bin/env bash
# Makes, once, what tests that boot VMs share: the default image and kernel, built by banger itself, and the kernel's
# modules as a directory. Prints the environment that the tests read.
set -euo pipefail
cd "$(dirname "$0")/.."
seed=${BANGER_E2E_SEED:-$PWD/dist/seed}
mkdir -p "$seed"
run=$(mktemp -d)
trap 'rm -rf "$run"' EXIT

banger() {
  env HOME="$seed/home" XDG_STATE_HOME="$seed/state" XDG_CACHE_HOME="$seed/cache" XDG_CONFIG_HOME="$seed/config" \
    XDG_RUNTIME_DIR="$run" BANGER_CONFIG= BANGER_GUEST="$PWD/bin/banger-guest" bin/banger "$@" >&2
}
banger vm create --no-start --name seed
banger vm delete seed
banger daemon stop

kernel=$seed/state/banger/kernels/debian-cloud
release=$(sed -n 's/.*"release": *"\([^"]*\)".*/\1/p' "$kernel/manifest.json" | head -n 1)
modules=$seed/modules/$release
if [[ ! -e $modules/modules.dep ]]; then
  rm -rf "$seed/modules"
  mkdir -p "$modules"
  debugfs -R "rdump / $modules" "$kernel/modules.ext4" >&2 2>/dev/null
fi
echo "export BANGER_E2E_SEED='$seed'"
echo "export BANGER_TEST_KERNEL='$kernel/vmlinuz'"
echo "export BANGER_TEST_MODULES='$modules'"
echo "export BANGER_TEST_INITRAMFS='$(ls -t "$seed"/cache/banger/initramfs/* | head -n 1)'"
echo "export BANGER_TEST_BASE='$(ls "$seed"/state/banger/images/blobs/sha256/* | head -n 1)'"
