#!/bin/sh
# `make run`: runs the same small program in four languages with the inventory of this repository, then lists nodes and
# jobs. For a missing toolchain it names the Debian package. Stops the master only if it has started it.
set -eu
cd "$(dirname "$0")/.."
status=0

grid() { .venv/bin/sshgrid -i inventory.yaml "$@"; }

show() {
  printf '\n$ sshgrid %s\n' "$*"
  grid "$@" || status=1
}

show_if() { # TOOL PACKAGE FILE
  if command -v "$1" >/dev/null; then
    show run "examples/$3" 50
  else
    printf '\nexamples/%s is skipped: %s is not installed (sudo apt-get install %s)\n' "$3" "$1" "$2"
  fi
}

trap 'exit 130' INT TERM
if ! grid master status >/dev/null 2>&1; then trap 'grid master stop >/dev/null 2>&1' EXIT; fi

show_if python3 python3 primes.py
show_if gcc gcc primes.c
show_if g++ g++ Primes.cpp
show_if javac default-jdk-headless Primes.java
show nodes
show ps -a
printf '\nTo use sshgrid in this shell: . .venv/bin/activate\n'
exit "$status"
