#!/usr/bin/env bash
# From a fresh checkout to a first VM: a shell in it on a terminal, else a short demonstration. Tells what each step took.
set -euo pipefail
cd "$(dirname "$0")/.."

now() { date +%s%N; }
report=()
stage() { # stage NAME SINCE
  report+=("$(awk -v name="$1" -v ns="$(($(now) - $2))" 'BEGIN { printf "  %-28s %7.1f s", name, ns / 1e9 }')")
}

all=$(now)
began=$all
scripts/deps.sh run
stage "packages" "$began"

began=$(now)
make --no-print-directory build
stage "build" "$began"

began=$(now)
status=0
if [[ -t 0 && -t 1 ]]; then
  echo "Starting a VM. Leaving its shell leaves it running: bin/banger vm list shows it." >&2
  bin/banger vm run || status=$?
  stage "image, kernel, boot, shell" "$began"
else
  # shellcheck disable=SC2016 # the guest's shell expands it
  bin/banger vm run --rm -- sh -c 'echo "Hello from $(uname -sr), process 1 is $(cat /proc/1/comm), up $(cut -d" " -f1 /proc/uptime) s"' || status=$?
  stage "image, kernel, boot, command" "$began"
fi
stage "in all" "$all"
printf '%s\n' "${report[@]}" >&2
exit "$status"
