#!/bin/sh
# Creates .venv and installs this package into it with these extras: scripts/venv.sh [EXTRA[,EXTRA]].
# Exits with 1 and a hint when Python is too old or cannot create virtual environments (as on a new Debian).
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
extras=${1:+[$1]}

fail() {
  printf 'error: %s\nhint: %s\n' "$1" "$2" >&2
  exit 1
}

command -v "$python" >/dev/null || fail "$python is not installed" "sudo apt-get install python3 python3-venv"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  fail "$("$python" --version) is too old: sshgrid needs 3.11" "make PYTHON=/path/to/python3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$python cannot create virtual environments" "sudo apt-get install python3-venv"

if [ ! -x .venv/bin/pip ]; then "$python" -m venv --clear .venv; fi
.venv/bin/pip install --quiet --disable-pip-version-check --retries 5 --editable ".$extras"
