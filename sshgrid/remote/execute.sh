# shellcheck shell=sh
# Run one command of a user, in a session of its own and with a time limit. Fed to `exec /bin/sh` on standard input,
# after `set --` has put the limit in seconds and the command's words into the positional parameters. Sets $answer: the
# exit status, and `late` when the limit ended the command. The command ends on this node at the limit even when the
# connection is lost.

limit=$1
shift
late=
trap 'late=late; kill -TERM "-$command" 2>/dev/null' ALRM
trap 'kill -KILL "-$command" 2>/dev/null' USR1

setsid "$@" </dev/null 2>&1 &
command=$!
# shellcheck disable=SC2016 # for the other shell
setsid /bin/sh -c 'sleep "$1"; kill -ALRM "$2"; sleep 2; kill -USR1 "$2"' watch "$limit" "$$" </dev/null >/dev/null 2>&1 &
watch=$!
while :; do
  wait "$command"
  status=$?
  # A signal to this shell ends `wait` too; then the command still exists.
  kill -0 "$command" 2>/dev/null || break
done
# The process itself first: it may not yet have a session of its own.
kill -KILL "$watch" 2>/dev/null
kill -KILL "-$watch" 2>/dev/null
# The status of timeout(1); the status of `wait` may be that of the signal to this shell.
[ -z "$late" ] || status=124
# shellcheck disable=SC2034 # read by the caller
answer="$status $late"
