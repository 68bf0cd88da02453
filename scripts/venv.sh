#!/bin/sh
# Makes .venv and installs this package into it with the extras named: scripts/venv.sh [EXTRA[,EXTRA]].
# Says what to do where Python is too old or cannot make virtual environments (a fresh Debian).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extras=${1:+[$1]}

fail() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "there is no $python here" "sudo apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: sshgrid needs 3.11" "make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot make virtual environments" "sudo apt-get install python3-venv"

if [ ! -x .venv/bin/pip ]; then "$python" -m venv --clear .venv; fi
.venv/bin/pip install --quiet --disable-pip-version-check --retries 5 --editable ".$extras"
