# shellcheck shell=sh
# One command for a person, in a session of its own and with a limit. Fed to `exec /bin/sh` on standard input, after
# `set --` has put the limit in seconds and the command's words into the positional parameters. Leaves $answer behind: the
# exit status, and `late` when the limit ended it. It ends there even when the connection has long been lost.

limit=$1
shift
late=
trap 'late=late; kill -TERM "-$command" 2>/dev/null' ALRM
trap 'kill -KILL "-$command" 2>/dev/null' USR1

setsid "$@" </dev/null 2>&1 &
command=$!
# shellcheck disable=SC2016 # for the shell that it starts
setsid /bin/sh -c 'sleep "$1"; kill -ALRM "$2"; sleep 2; kill -USR1 "$2"' watch "$limit" "$$" </dev/null >/dev/null 2>&1 &
watch=$!
while :; do
  wait "$command"
  status=$?
  # A signal to this shell ends `wait` too; then the command is still there.
  kill -0 "$command" 2>/dev/null || break
done
# Itself first: it may not yet be in a session of its own.
kill -KILL "$watch" 2>/dev/null
kill -KILL "-$watch" 2>/dev/null
# As timeout(1) says it; what `wait` said may be the signal to this shell.
[ -z "$late" ] || status=124
# shellcheck disable=SC2034 # for whoever asked
answer="$status $late"
