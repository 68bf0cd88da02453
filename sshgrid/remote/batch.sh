# shellcheck shell=sh
# Many runs of one program with one start: a batch. It is a run as in node.sh (claimed, built, followed and cleaned as
# one), whose job.sh says how many LANES work through its TASKS, and ends with one line `task ...` for each. Sourced by the
# control shell of a connection and by the wrapper, after node.sh; run as `sh batch.sh lane ...` for each lane, which
# parses nothing but this and job.sh, as what a task costs is forks.
#
#   runs/<batch>/               as of any run, and
#     ledger                    records of 128 bytes, made (blank) at the start, so that a full disk loses no exit code:
#                               "begin TASK LANE UPTIME ." and "end TASK LANE PRINTED WHY rc=... ."
#     lane.N  lane.N.pid        "TASK PID" of what the lane runs now; link: the lane's process
#     TASK/out err work/ cpu    as of any run. Who makes `out` has the task: a lane, or a refusal
#     TASK/why                  link: signal, or refused
#
# shellcheck disable=SC2153,SC2154 # job.sh and node.sh give them
# A task's name is that of its run without the grid. Values arrive as positional parameters or files, quoted once.

# --- the wrapper's part --------------------------------------------------------------------------------------------------

# What every task needs, made at once: a fork for each would be most of what a small task costs.
lay_out_tasks() {
  # shellcheck disable=SC2086 # names of tasks are ours: digits and dots
  printf '%s/work\n' $TASKS | xargs mkdir -p &&
    printf '%s\n' $TASKS | awk '{ printf "%127s\n%127s\n", "", "" }' >ledger || return
  lane=0
  while [ "$lane" -lt "$LANES" ]; do
    lane=$((lane + 1))
    printf '%63s\n' '' >"lane.$lane" || return
  done
}

# A pipeline keeps its processes in the foreground: a background job would have INT ignored, and so would the programs.
work_through() {
  exec 8<>ledger
  [ "$ISOLATION$LEASE" = pidns ] || look_after_tasks </dev/null >/dev/null 2>&1 8>&- 9>&- &
  chain='(lane 1)'
  lane=1
  while [ "$lane" -lt "$LANES" ]; do
    lane=$((lane + 1))
    chain="$chain | (lane $lane)"
  done
  eval "$chain"
  exec 8>&-
  # A lane that was lost must not leave the task that it had.
  [ "$ISOLATION" = pidns ] || kill_carrying "SSHGRID_BATCH=$RUN/"
}

lane() {
  own_pid
  record_identity "$own" "lane.$1.pid" || exit 70
  set -- /bin/sh "${LIB%/*}/batch${LIB##*/node}" lane "$W" "$RUN" "$BOOT" "$1"
  # shellcheck disable=SC2086 # two options or none
  [ "$ISOLATION" != pidns ] ||
    set -- unshare $USER_NAMESPACE --pid --fork --kill-child=KILL --mount-proc "$@"
  exec "$@" </dev/null >/dev/null
}

# Once a second: the lease of the batch, and, without pid namespaces, processes that left the group of a task which has
# ended. First who is there, then which tasks are under way: the other way round would take a new one for a stray.
look_after_tasks() {
  trap '' INT TERM
  while sleep 1; do
    if [ -n "$LEASE" ] && lease_ended; then
      ln -sf lease why
      for link in lane.*.pid; do link_target "$link" && identity_alive "$target" && kill -9 "$pid"; done
      kill_carrying "SSHGRID_BATCH=$RUN/"
      kill -9 0
    fi
    [ "$ISOLATION" = pidns ] || kill_left_behind
  done
}

kill_left_behind() {
  there=$(grep -Fxlsz "SSHGRID_BATCH=$RUN/" /proc/[0-9]*/environ)
  [ -n "$there" ] || return 0
  set --
  for lane in lane.*[0-9]; do
    read -r task _ <"$lane"
    set -- "$@" -e "SSHGRID_RUN=${RUN%%-*}-$task/"
  done
  # shellcheck disable=SC2086 # files of /proc
  grep -FxLsz "$@" $there | while read -r stray; do
    stray=${stray#/proc/}
    kill -9 "${stray%/environ}"
  done
}

# --- a lane: one task after another --------------------------------------------------------------------------------------

# The process of this very (sub)shell in $own. Two system calls where there is /proc; the shell knows only its parent's.
own_pid() {
  here=$PWD
  if cd -P /proc/self 2>/dev/null; then
    own=${PWD##*/}
    cd "$here" || exit 70
  else
    # shellcheck disable=SC2016 # of the shell that is asked
    own=$(exec /bin/sh -c 'echo "$PPID"')
  fi
}

work_in_lane() {
  cd "$W/runs/$RUN" || exit 70
  # Caught, not ignored: what is ignored here would stay ignored in the programs.
  trap : HUP INT QUIT TERM PIPE USR1 USR2
  rang=0
  own_session=$(command -v setsid)
  # shellcheck disable=SC3045 # dash, busybox and bash all have it
  ulimit -c 0 2>/dev/null
  exec 2>/dev/null
  # From here on `>` makes a file or fails, in one step.
  set -C
  now=$(uptime_of_node)
  # shellcheck source=/dev/null
  . ./job.sh
  rang=0
  ring
}

uptime_of_node() {
  up=
  { read -r up _ </proc/uptime; } 2>/dev/null || up=$(date +%s)
  echo "$up"
}

# task NAME INPUT EXPORTS WORD...: a line of job.sh. Nothing when another lane has it, or it was refused.
task() {
  [ ! -e "$1/out" ] || return 0
  # No room for the file: no lane could go on, and what has not begun is begun elsewhere.
  printf '' >"$1/out" || { [ -e "$1/out" ] && return 0; exit 74; }
  printf '%-126s.\n' "begin $1 $LANE $now" >&8
  began=$now
  stage=run
  why=-
  if tools_present; then
    input=/dev/null
    [ "$2" = - ] || input=$W/objects/$2
    (program_of "$@") <"$input" >>"$1/out" 2>"$1/err" 8>&- 9>&-
    code=$?
    end_of_program "$1"
  else
    code=127
    why=toolchain
  fi
  note_end "$1"
  ring
}

# In a subshell, so no task sees another's variables; they may have any name, ours too: what is needed after is in $@.
program_of() {
  if [ "$ISOLATION" != pidns ] || [ ! -d /proc/self ]; then own_pid; else own=0; fi
  printf '%-63s\n' "$1 $own" 1<>"lane.$LANE"
  cd "$1/work" || exit 70
  exports=$3
  shift 3
  [ "$ISOLATION" = pidns ] || set -- "$own_session" "$@"
  umask 022
  environment
  eval "$exports"
  exec "$@"
}

# Whoever is left: in a pid namespace of the lane's own all but the lane; else the group, and the rest within a second.
end_of_program() {
  if [ "$ISOLATION" = pidns ]; then
    kill -9 -1
    [ "$code" != 0 ] || return 0
  fi
  read -r begun leader <"lane.$LANE"
  # Its streams could not be opened: it never began.
  if [ "$begun" != "$1" ]; then stage=start; else [ "$ISOLATION" = pidns ] || kill -9 -"$leader"; fi
}

note_end() {
  [ ! -h "$1/why" ] || why=$(readlink "$1/why")
  user=
  system=
  times >"$1/cpu"
  # No room for these few bytes: what the program printed may be cut short, and few programs notice.
  if [ -s "$1/cpu" ]; then { read -r _ && read -r user system; } <"$1/cpu"; else why=full; fi
  { read -r now _ </proc/uptime; } || now=$(date +%s)
  printed=
  [ ! -s "$1/out" ] || printed=o
  [ ! -s "$1/err" ] || printed=${printed}e
  printf '%-126s.\n' \
    "end $1 $LANE ${printed:--} $why rc=$code,stage=$stage,began=$began,ended=$now,cpu=$user+$system,peak=" >&8
}

# Tells the connection that started this, if it is still there, at most five times a second: the ledger is the truth.
ring() {
  fraction=${now#*.}
  moment=${now%%.*}${fraction%"${fraction#?}"}
  if [ "$((moment - rang))" -ge 2 ]; then
    rang=$moment
    { echo "end $RUN" >&9; } 2>/dev/null
  fi
}

# --- looking (the control channel) ---------------------------------------------------------------------------------------

# look_batch BATCH OFFSET COUNT SMALL: poll, a line "ledger", at most COUNT records of the ledger from OFFSET on, a line
# "files", `ls` of all that the tasks which ended there have printed, a line "tar", and those of at most SMALL blocks (512
# bytes) as an archive. With a dead wrapper its lanes are ended first: what they have not begun then is never begun.
look_batch() {
  cd "$W/runs/$1" 2>/dev/null && link_target pid && ! identity_alive "$target" && [ ! -h rc ] &&
    kill_carrying "SSHGRID_RUN=$1/" "SSHGRID_BATCH=$1/"
  poll "$1"
  echo ledger
  cd "$W/runs/$1" 2>/dev/null && [ -e ledger ] || return 0
  records=$(tail -c "+$(($2 + 1))" ledger | awk -v most="$3" 'NR > most || !/[.]$/ { exit } { print }')
  printf '%s\nfiles\n' "$records"
  case $records in *' o '* | *' e '* | *' oe '*) ;; *) return 0 ;; esac
  files=$(printf '%s\n' "$records" | awk '
    $1 == "end" && $4 ~ /o/ { print $2 "/out" }
    $1 == "end" && $4 ~ /e/ { print $2 "/err" }')
  # shellcheck disable=SC2086,SC2012 # names are ours
  LC_ALL=C ls -ln $files
  echo tar
  # shellcheck disable=SC2086
  small=$(find $files -size -"$(($4 + 1))")
  # shellcheck disable=SC2086
  [ -z "$small" ] || tar -cf - $small
} 2>/dev/null

# signal_task BATCH TASK NAME: to all processes of the task. Answers "sent" or "none".
# Who was found while the lane had this task before and after the look belongs to this task, whatever it did to itself.
signal_task() {
  found=none
  cd "$W/runs/$1" && for lane in lane.*[0-9]; do
    { read -r task _ <"$lane" && [ "$task" = "$2" ] && link_target "$lane.pid" && identity_alive "$target"; } || continue
    depth=1
    [ "$ISOLATION" != pidns ] || depth=2
    family=$(tree "$pid" | while read -r member _ level; do [ "$level" -le "$depth" ] || echo "$member"; done)
    read -r task _ <"$lane"
    if [ "$task" != "$2" ] || [ -z "$family" ]; then continue; fi
    case $3 in INT | TERM | KILL | HUP | QUIT) ln -s signal "$2/why" ;; esac
    for member in $family; do kill -"$3" "$member" && found=sent; done
  done
  echo "$found"
} 2>/dev/null

# refuse_task BATCH/TASK: it shall not begin. Answers "claimed", or "already" when it has begun or is not there (yet).
refuse_task() {
  set -C
  if printf '' >"$W/runs/$1/out"; then
    ln -s refused "$W/runs/$1/why"
    echo claimed
  else
    echo already
  fi
  set +C
} 2>/dev/null

# --- entry when run as a program -----------------------------------------------------------------------------------------

if [ "${1-}" = lane ]; then
  set -u
  umask 077
  W=$2
  RUN=$3
  LANE=$5
  work_in_lane
fi
