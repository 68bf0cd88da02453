# shellcheck shell=sh
# Many runs of one program with one start: a batch. It is a run as in node.sh (claimed, built, followed and cleaned as
# one), whose job.sh says how many LANES work through how many TASKS, and ends with one line `task ...` for each. More may
# come while it runs. Sourced by the control shell and the starter of a connection and by the wrapper, after node.sh; run as
# `sh batch.sh lane ...` for each lane, which parses nothing but this and job.sh, as what a task costs is forks.
#
#   runs/<batch>/               as of any run, and
#     job.N.sh                  from N = 2 on: tasks that came later; or a link, made by the first lane that found no more
#     ledger                    records of 128 bytes, made (blank) at the start, so that a full disk loses no exit code:
#                               "begin TASK LANE UPTIME ." and "end TASK LANE PRINTED WHY rc=... ."
#     lane.N                    link: the lane's process
#     TASK.out  TASK.err        what it printed. Who makes `out` has the task: a lane, or a refusal
#     TASK.why                  link: signal, or refused
#     work.N.K                  the lane's current folder for its tasks: another one as soon as a task has left something
#     room.N  cpu.N             of the lane: is the disk full? and what `times` said last
#
# Files cost more than forks on some file systems: a task has no others.
# shellcheck disable=SC2153,SC2154 # job.sh and node.sh give them
# A task's name is that of its run without the grid. Values arrive as positional parameters or files, quoted once.

# --- the wrapper's part --------------------------------------------------------------------------------------------------

# What every task needs, made at once: a fork for each would be most of what a small task costs.
lay_out_tasks() { blank_records "$TASKS" >ledger; }

blank_records() { awk -v tasks="$1" 'BEGIN { while (tasks-- > 0) printf "%127s\n%127s\n", "", "" }'; }

# A pipeline keeps its processes in the foreground: a background job would have INT ignored, and so would the programs.
work_through() {
  exec 8<>ledger
  [ "$ISOLATION$LEASE" = pidns ] || look_after_tasks </dev/null >/dev/null 2>&1 8>&- 9>&- &
  chain='(keep_lane 1)'
  lane=1
  while [ "$lane" -lt "$LANES" ]; do
    lane=$((lane + 1))
    chain="$chain | (keep_lane $lane)"
  done
  eval "$chain"
  exec 8>&-
  [ "$ISOLATION" = pidns ] || kill_carrying "SSHGRID_BATCH=$RUN/"
}

# A lane shares its session with the task it runs, and a task may end its own group: it has ended like that, then, and the
# rest goes on in a new lane. (A session for each task would double what a small one costs.)
keep_lane() {
  while [ ! -h why ]; do
    rm -f "lane.$1"
    (begin_lane "$1") </dev/null >/dev/null
    code=$?
    case $code in 0 | 74) return ;; esac
    task=$(under_way | while read -r task lane; do [ "$lane" != "$1" ] || echo "$task"; done)
    [ -n "$task" ] || return
    kill_carrying "SSHGRID_RUN=${RUN%%-*}-$task/"
    uptime_seconds
    look_at_output "$task"
    printf '%-126s.\n' "end $task $1 $printed - rc=$code,stage=run,began=$now,ended=$now,cpu=,peak=" >&8
  done
}

begin_lane() {
  own_pid
  record_identity "$own" "lane.$1" || exit 74
  # A session of its own: also from inside of a pid namespace `kill 0` reaches the whole group.
  set -- setsid /bin/sh "${LIB%/*}/batch${LIB##*/node}" lane "$W" "$RUN" "$BOOT" "$1"
  # shellcheck disable=SC2086 # two options or none
  [ "$ISOLATION" != pidns ] || set -- unshare $USER_NAMESPACE --pid --fork --kill-child=KILL --mount-proc "$@"
  exec "$@"
}

# The process of this very subshell in $own: `$$` is that of the first one. Two system calls where there is /proc.
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

# "TASK LANE" of each task that has begun and not ended.
under_way() {
  awk '!/[.]$/ { exit } { lane[$2] = $1 == "begin" ? $3 : 0 } END { for (task in lane) if (lane[task]) print task, lane[task] }' ledger
}

# Once a second: the lease of the batch, and, without pid namespaces, what is left of tasks that have ended.
look_after_tasks() {
  trap '' INT TERM
  while sleep 1; do
    if [ -n "$LEASE" ] && lease_ended; then
      # No lane begins anything from here on.
      ln -sf lease why
      for link in lane.*; do link_target "$link" && identity_alive "$target" && kill -9 "$pid"; done
      kill_carrying "SSHGRID_BATCH=$RUN/"
      kill -9 0
    fi
    [ "$ISOLATION" = pidns ] || kill_left_behind
  done
}

# First who is there, then which tasks are under way: the other way round would take a new one for a stray.
kill_left_behind() {
  there=$(grep -Fxlsz "SSHGRID_BATCH=$RUN/" /proc/[0-9]*/environ)
  [ -n "$there" ] || return 0
  under_way | {
    set -- -e "SSHGRID_RUN=/"
    while read -r task _; do set -- "$@" -e "SSHGRID_RUN=${RUN%%-*}-$task/"; done
    # shellcheck disable=SC2086 # files of /proc
    grep -FxLsz "$@" $there
  } | while read -r stray; do
    stray=${stray#/proc/}
    kill -9 "${stray%/environ}"
  done
}

# --- a lane: one task after another --------------------------------------------------------------------------------------

work_in_lane() {
  DIR=$W/runs/$RUN
  cd "$DIR" || exit 70
  # Caught, not ignored: what is ignored here would stay ignored in the programs.
  trap : HUP INT QUIT TERM PIPE USR1 USR2
  # shellcheck disable=SC3045 # dash, busybox and bash all have it
  ulimit -c 0 2>/dev/null
  exec 2>/dev/null
  umask 022
  # From here on `>` makes a file or fails, in one step.
  set -C
  rang=0
  work=
  folder=0
  { read -r now _ </proc/uptime; } || now=$(date +%s)
  # shellcheck source=/dev/null
  . ./job.sh
  part=1
  # shellcheck source=/dev/null
  while next_part; do . "./job.$part.sh"; done
  rang=0
  ring
}

# Whether more tasks have come. Else none will: the name is taken, by a link to nothing.
next_part() {
  part=$((part + 1))
  [ -e "job.$part.sh" ] || { ln -s closed "job.$part.sh"; [ -e "job.$part.sh" ]; }
}

# The next current folder in $work: the last one, when the task that had it has left it as it was. Folders are made some
# at a time, for the fork.
next_folder() {
  if [ -n "$work" ] && [ -r "$work" ] && [ -w "$work" ] && [ -x "$work" ] && is_empty "$work"; then return; fi
  folder=$((folder + 1))
  work=work.$LANE.$folder
  [ ! -d "$work" ] || return 0
  # shellcheck disable=SC2046 # numbers
  mkdir $(printf "work.$LANE.%d " $(folders_ahead)) || return
}

# How many at once: the more, the more have been needed so far.
folders_ahead() {
  ahead=$folder
  while [ "$ahead" -lt "$((folder + (folder < 16 ? folder : 16)))" ]; do
    echo "$ahead"
    ahead=$((ahead + 1))
  done
}

is_empty() {
  set -- "$1"/* "$1"/.[!.]* "$1"/..?*
  for entry; do if [ -e "$entry" ] || [ -h "$entry" ]; then return 1; fi; done
}

# task NAME INPUT ASSIGNMENTS WORD...: a line of job.sh. Nothing when another lane has it, or it was refused.
# The program is a simple command of this very shell, which dash starts without a copy of itself. The variables stand
# before it as assignments: the shell keeps its own, whatever their names.
task() {
  [ ! -e "$1.out" ] || return 0
  [ ! -h why ] || exit 74
  # No room for the file: no lane could go on, and what has not begun is begun elsewhere.
  printf '' >"$1.out" || { [ -e "$1.out" ] && return 0; exit 74; }
  printf '%-126s.\n' "begin $1 $LANE $now" >&8
  name=$1
  input=/dev/null
  [ "$2" = - ] || input=$W/objects/$2
  command="$COMMON $3 "'"$@"'
  shift 3
  began=$now
  why=-
  code=127
  if ! tools_present; then
    stage=run
    why=toolchain
  else
    # When its streams cannot be opened it never begins.
    stage=start
    next_folder && cd "$work" && { stage=run && eval "$command"; } <"$input" >>"../$name.out" 2>"../$name.err" 8>&- 9>&-
    code=$?
    cd "$DIR" || exit 70
    # In a pid namespace of the lane's own: all but the lane. Elsewhere within a second: look_after_tasks.
    [ "$ISOLATION" != pidns ] || kill -9 -1
  fi
  note_end
  ring
}

note_end() {
  [ ! -h "$name.why" ] || why=$(readlink "$name.why")
  # No room for this: what the program printed may be cut short, and few programs notice.
  printf '%4096s' '' >>"room.$LANE" || why=full
  user=
  system=
  times 1<>"cpu.$LANE" && { read -r _ && read -r user system; } <"cpu.$LANE"
  { read -r now _ </proc/uptime; } || now=$(date +%s)
  look_at_output "$name"
  printf '%-126s.\n' \
    "end $name $LANE $printed $why rc=$code,stage=$stage,began=$began,ended=$now,cpu=$user+$system,peak=" >&8
}

look_at_output() {
  printed=
  [ ! -s "$1.out" ] || printed=o
  [ ! -s "$1.err" ] || printed=${printed}e
  printed=${printed:--}
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

# --- more tasks (the starter) --------------------------------------------------------------------------------------------

# more BATCH NOT_AFTER NEEDED PART COUNT: COUNT more tasks for a batch that may be over soon; standard input is job.PART.sh.
# Answers as `start` does: late, missing, unfit; "claimed BATCH.PART", or "already BATCH.PART": its lanes take no more.
more() {
  said=$1.$4
  dir=$W/runs/$1
  uptime_seconds
  if [ "$now" -gt "$2" ]; then
    echo "late $said"
  elif nothing_lacks "$said" "$3"; then
    if [ ! -d "$dir" ]; then
      echo "already $said"
    elif ! { cat >"$dir/part.$4" && blank_records "$5" >>"$dir/ledger"; }; then
      echo "unfit $said no space left in $W"
    elif ln "$dir/part.$4" "$dir/job.$4.sh"; then
      echo "claimed $said"
    else
      echo "already $said"
    fi
  fi
} 2>/dev/null

# --- looking (the control channel) ---------------------------------------------------------------------------------------

# look_batch BATCH SEEN COUNT SMALL: what is new since SEEN records of the ledger. Either a line "news" (with "compiled"),
# at most COUNT records, a line "files", and as an archive of what the tasks that ended there have printed what has at most
# SMALL blocks (512 bytes). Or, without news, poll. Most looks find some, and are two forks.
# With a dead wrapper its lanes are ended first: what they have not begun then is never begun.
look_batch() {
  cd "$W/runs/$1" || { poll "$1"; return; }
  tell_news "$2" "$3" "$4" && return
  link_target pid && ! identity_alive "$target" && [ ! -h rc ] && kill_carrying "SSHGRID_RUN=$1/" "SSHGRID_BATCH=$1/"
  # In this order: after the record of a batch there is no news.
  state=$(poll "$1")
  tell_news "$2" "$3" "$4" || echo "$state"
} 2>/dev/null

# Status 1 when there is none. The first line of what awk says: the files.
tell_news() {
  news=$(awk -v seen="$1" -v most="$2" '
    NR <= seen { next }
    NR > seen + most || !/[.]$/ { exit }
    { records = records "\n" $0 }
    $1 == "end" && $4 ~ /o/ { files = files " " $2 ".out" }
    $1 == "end" && $4 ~ /e/ { files = files " " $2 ".err" }
    END { printf "%s%s", files, records }' ledger) || return
  files=${news%%"$newline"*}
  [ "$files" != "$news" ] || return 1
  if [ -e compiled ]; then echo "news compiled"; else echo news; fi
  printf '%s\nfiles\n' "${news#*"$newline"}"
  # shellcheck disable=SC2086 # names are ours
  [ -z "$files" ] || find $files -size -"$(($3 + 1))" -exec tar -cf - {} +
}

newline='
'

# signal_task BATCH TASK NAME: to all processes of the task. Answers "sent" or "none".
# Who was below the lane while it had this task before and after the look belongs to it, whatever it did to itself; others
# are known by their environment.
signal_task() {
  family=
  cd "$W/runs/$1" && lane=$(lane_of "$2") && link_target "lane.${lane:-0}" && identity_alive "$target" &&
    family=$(below_lane "$pid")
  if [ -z "$family" ] || [ "$(lane_of "$2")" != "$lane" ]; then
    echo none
    return
  fi
  others=$(grep -Fxlsz "SSHGRID_RUN=${1%%-*}-$2/" /proc/[0-9]*/environ)
  case $3 in INT | TERM | KILL | HUP | QUIT) ln -s signal "$2.why" ;; esac
  found=none
  # shellcheck disable=SC2086 # a word each
  for member in $(printf '%s\n' $family $others | sed 's/[^0-9]//g' | sort -u); do kill -"$3" "$member" && found=sent; done
  [ "$3" != KILL ] || kill_carrying "SSHGRID_RUN=${1%%-*}-$2/"
  echo "$found"
} 2>/dev/null

lane_of() { under_way | while read -r task lane; do [ "$task" != "$1" ] || echo "$lane"; done; }

below_lane() {
  if [ "$ISOLATION" = pidns ]; then own_levels=2; else own_levels=1; fi
  tree "$1" | while read -r member _ level; do [ "$level" -le "$own_levels" ] || echo "$member"; done
}

# refuse_tasks BATCH TASK...: they shall not begin. Answers the names of those that now never will: others have begun, or
# are not there (yet).
refuse_tasks() {
  cd "$W/runs/$1" || return 0
  shift
  set -C
  for task; do printf '' >"$task.out" && echo "$task"; done
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
