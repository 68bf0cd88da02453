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
#     TASK.why                  link: signal, or the limit that was passed (wall, memory, output)
#     TASK.peak                 bytes of memory: only of a task that was seen at work
#     work                      what travels with the tasks; each gets a copy
#     work.N.K                  the lane's current folder for its tasks: another one as soon as a task has left something
#     room.N  cpu.N             of the lane: is the disk full? and what `times` said last
#
# Files cost more than forks on some file systems: a task has no others.
# shellcheck disable=SC2153,SC2154 # job.sh and node.sh give them
# A task's name is that of its run without the grid. Values arrive as positional parameters or files, quoted once.

# --- the wrapper's part --------------------------------------------------------------------------------------------------

# What every task needs, made at once.
lay_out_tasks() { blank_records "$TASKS" >ledger; }

blank_records() {
  left=$1
  while [ "$left" -gt 0 ]; do
    printf '%127s\n%127s\n' '' '' || return
    left=$((left - 1))
  done
}

# A pipeline keeps its processes in the foreground: a background job would have INT ignored, and so would the programs.
work_through() {
  exec 8<>ledger
  look_after_tasks </dev/null >/dev/null 2>&1 8>&- 9>&- &
  chain='(keep_lane 1)'
  lane=1
  while [ "$lane" -lt "$LANES" ]; do
    lane=$((lane + 1))
    chain="$chain | (keep_lane $lane)"
  done
  eval "$chain"
  exec 8>&-
  close_parts
  [ "$ISOLATION" = pidns ] || kill_carrying "SSHGRID_BATCH=$RUN/" || printf '' >strays
}

# Most often a lane has done so. When all were killed nobody would work through what comes now.
close_parts() {
  part=2
  until [ -h "job.$part.sh" ]; do
    if [ -e "job.$part.sh" ]; then
      part=$((part + 1))
    else
      ln -s closed "job.$part.sh" || [ -e "job.$part.sh" ] || return 0
    fi
  done
}

# A lane shares its session with the task it runs, and a task may end its own group: it has ended like that, then, and the
# rest goes on in a new lane. (A session for each task would double what a small one costs.)
keep_lane() {
  deaths=0
  while [ ! -h why ]; do
    [ ! -h "lane.$1" ] || rm -f "lane.$1"
    (begin_lane "$1") </dev/null >/dev/null
    code=$?
    [ "$ISOLATION" = pidns ] || kill_group "lane.$1"
    case $code in 0 | 74) return ;; esac
    task=$(under_way | while read -r task lane _; do [ "$lane" != "$1" ] || echo "$task"; done)
    if [ -z "$task" ]; then # what an earlier task has left may have ended it, and more may have come
      deaths=$((deaths + 1))
      if [ "$deaths" -lt 3 ]; then continue; else return; fi
    fi
    kill_carrying "SSHGRID_RUN=${RUN%%-*}-$task/"
    note_now
    why=$(readlink "$task.why") || why=-
    write_end "$task" "$1" "$code" run "$now" ""
  done
}

begin_lane() {
  own_pid
  record_identity "$own" "lane.$1" || exit 74
  # shellcheck disable=SC3045 # dash, busybox and bash all have it
  [ -z "$ADDRESS_SPACE_KB" ] || ulimit -v "$ADDRESS_SPACE_KB" 2>/dev/null
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

# "TASK LANE UPTIME" of each task that has begun and not ended.
under_way() {
  awk '
    !/[.]$/ { exit }
    { lane[$2] = $1 == "begin" ? $3 : 0; began[$2] = $4 }
    END { for (task in lane) if (lane[task]) print task, lane[task], began[task] }' ledger
}

# One for all tasks: the lease of the batch, the limits of each task, the memory it takes, and, without pid namespaces, what
# is left of those that have ended. Once a second; more often where a limit may be passed in less.
look_after_tasks() {
  trap '' INT TERM
  every=100
  [ -z "$MEMORY_LIMIT$OUTPUT_LIMIT" ] || every=20
  [ -z "$WALL_LIMIT" ] || [ "$((WALL_LIMIT / 4))" -ge "$every" ] || every=$((WALL_LIMIT / 4))
  [ "$every" -ge 10 ] || every=10
  rest=$every
  thorough_at=0
  while rest_hundredths "$rest"; do
    if [ -n "$LEASE" ] && lease_ended; then end_batch; fi
    uptime_hundredths
    thorough=0
    [ "$hundredths" -lt "$thorough_at" ] || { thorough=1 thorough_at=$((hundredths + 95)); }
    look_at_tasks
    if [ "$thorough" = 1 ] && [ "$ISOLATION" != pidns ]; then kill_left_behind; fi
  done
}

rest_hundredths() {
  if [ "$1" -lt 100 ]; then sleep "0.$1" 2>/dev/null || sleep 1; else sleep 1; fi
}

# No lane begins anything from here on.
end_batch() {
  ln -sf lease why
  for link in lane.*; do link_target "$link" && identity_alive "$target" && kill -9 "$pid"; done
  kill_carrying "SSHGRID_BATCH=$RUN/"
  kill -9 0
}

# Sets $rest: the time until the next look, not more than to the next wall limit.
look_at_tasks() {
  rest=$every
  # shellcheck disable=SC2046 # three words a task
  set -- $(under_way)
  while [ "$#" -ge 3 ]; do
    case $3 in *.*) began=${3%.*}${3#*.} ;; *) began=${3}00 ;; esac
    age=$((hundredths - began))
    # As with single runs: who is over in less is not looked at.
    if [ "$age" -ge 10 ] && ! is_being_ended "$1"; then look_at_task "$1" "$2" "$age"; fi
    shift 3
  done
}

is_being_ended() {
  link_target "$1.why" || return
  case $target in wall | memory | output) ;; *) return 1 ;; esac
}

look_at_task() { # TASK LANE AGE
  find_limit_passed "$@"
  if [ -n "$passed" ]; then
    # Noted before anything is done; a signal that the program outlived is no reason any more.
    ln -sf "$passed" "$1.why"
    end_task "$1" "$passed" &
  elif [ -n "$WALL_LIMIT" ] && [ "$((WALL_LIMIT - $3))" -lt "$rest" ]; then
    rest=$((WALL_LIMIT - $3))
    [ "$rest" -ge 10 ] || rest=10
  fi
}

find_limit_passed() { # TASK LANE AGE -> $passed
  passed=
  if [ -n "$WALL_LIMIT" ] && [ "$3" -ge "$WALL_LIMIT" ]; then
    passed=wall
  elif [ -n "$OUTPUT_LIMIT" ] && printed_too_much "$1.out" "$1.err"; then
    passed=output
  elif [ "$MEMORY_LIMIT$thorough" != 0 ] && link_target "lane.$2" && identity_alive "$target"; then
    count_lane_levels
    weigh "$pid" "$levels" "$1.peak"
    if [ -n "$MEMORY_LIMIT" ] && [ "$memory" -gt "$MEMORY_LIMIT" ]; then passed=memory; fi
  fi
}

# end_task TASK WHY: TERM, five seconds, KILL; KILL at once for memory. The lane lives on, so no group is signalled.
end_task() {
  until members_of "$RUN" "$1"; do
    [ -n "$(lane_of "$1")" ] || return
    rest_hundredths 10
  done
  known=$(identities_of "$members")
  if [ "$2" != memory ]; then
    signal_members TERM
    uptime_hundredths
    until=$((hundredths + 500))
    while [ "$hundredths" -lt "$until" ] && [ -n "$(lane_of "$1")" ]; do
      rest_hundredths 10
      uptime_hundredths
    done
  fi
  # Also who has lost its parent meanwhile, and its environment long before.
  for identity in $known; do identity_alive "$identity" && kill -9 "$pid"; done
  members_of "$RUN" "$1" && signal_members KILL
  kill_carrying "SSHGRID_RUN=${RUN%%-*}-$1/"
}

identities_of() { # "PID PID ..."
  for pid in $1; do start_time_of "$pid" && echo "pid=$pid,start=$started,boot=$BOOT"; done
}

# First who is there, then which tasks are under way: the other way round would take a new one for a stray.
kill_left_behind() {
  there=$(grep -Fxlsz "SSHGRID_BATCH=$RUN/" /proc/[0-9]*/environ)
  [ -n "$there" ] || return 0
  under_way | {
    set -- -e "SSHGRID_RUN=/"
    while read -r task _; do set -- "$@" -e "SSHGRID_RUN=${RUN%%-*}-$task/"; done
    # shellcheck disable=SC2086,SC2013 # files of /proc
    for stray in $(grep -FxLsz "$@" $there); do
      # Asked once more: a process that is about to become another program shows no environment for a moment.
      if grep -Fxqsz "SSHGRID_BATCH=$RUN/" "$stray" && ! grep -Fxqsz "$@" "$stray"; then
        stray=${stray#/proc/}
        kill -9 "${stray%/environ}"
      fi
    done
  }
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
  note_now
  # shellcheck source=/dev/null
  . ./job.sh
  part=1
  # shellcheck source=/dev/null
  while next_part; do rang=0 && . "./job.$part.sh"; done
  rang=0
  ring
}

note_now() { { read -r now _ </proc/uptime; } || now=$(date +%s); }

# Whether more tasks have come. Else none will: the name is taken, by a link to nothing.
next_part() {
  part=$((part + 1))
  [ -e "job.$part.sh" ] || linger || { ln -s closed "job.$part.sh"; [ -e "job.$part.sh" ]; }
}

# Whoever hears now that all have ended may send more, and a start of its own would cost more than to wait for that.
linger() {
  [ "$LINGERS" = 1 ] || return
  rang=0
  ring
  looks=0
  while [ "$looks" -lt 8 ] && [ ! -h why ] && sleep 0.05; do
    looks=$((looks + 1))
    [ ! -e "job.$part.sh" ] || return 0
  done
  return 1
}

# The next current folder in $work: the first that nobody has left anything in, also of those that a lane before this one
# made. Folders are made some at a time, for the fork.
next_folder() {
  until [ -n "$work" ] && [ -r "$work" ] && [ -w "$work" ] && [ -x "$work" ] && is_empty "$work"; do
    folder=$((folder + 1))
    work=work.$LANE.$folder
    [ ! -d "$work" ] || continue
    # shellcheck disable=SC2046 # numbers
    mkdir $(printf "work.$LANE.%d " $(folders_ahead))
    return
  done
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
  name=$1
  furnished=1
  furnish || furnished=0
  printf '%-126s.\n' "begin $name $LANE $now" >&8
  input=/dev/null
  [ "$2" = - ] || input=$W/objects/$2
  # Its error is the command's alone: bash would add words of its own about a program that a signal has ended.
  command="$COMMON $3 "'"$@" 2>&6 6>&-'
  shift 3
  began=$now
  why=-
  code=127
  if [ "$furnished" = 0 ]; then
    stage=layout
    why=data
  elif ! tools_present; then
    stage=run
    why=toolchain
  else
    # When its streams cannot be opened it never begins.
    stage=start
    cd "$work" && { stage=run && eval "$command"; } <"$input" >>"../$name.out" 6>"../$name.err" 8>&- 9>&-
    code=$?
    cd "$DIR" || exit 70
    # In a pid namespace of the lane's own: all but the lane. Elsewhere within a second: look_after_tasks.
    [ "$ISOLATION" != pidns ] || kill -9 -1
  fi
  note_end
  ring
  [ "$DATA" = 0 ] || rm -rf "$work"
}

# The task's folder, with what travels with it: one fork, however much that is.
furnish() {
  next_folder || return
  [ "$DATA" = 1 ] || return 0
  { cp -RP --reflink=auto work/. "$work" || cp -RP work/. "$work"; } || return
  note_now
}

note_end() {
  [ ! -h "$name.why" ] || why=$(readlink "$name.why")
  # No room for this: what the program printed may be cut short, and few programs notice.
  printf '%4096s' '' >>"room.$LANE" || why=full
  user=
  system=
  times 1<>"cpu.$LANE" && { read -r _ && read -r user system; } <"cpu.$LANE"
  note_now
  write_end "$name" "$LANE" "$code" "$stage" "$began" "$user+$system"
}

# write_end TASK LANE CODE STAGE BEGAN CPU, with $why and $now.
write_end() {
  printed=
  [ ! -s "$1.out" ] || printed=o
  [ ! -s "$1.err" ] || printed=${printed}e
  peak=
  [ ! -e "$1.peak" ] || read -r peak <"$1.peak"
  printf '%-126s.\n' \
    "end $1 $2 ${printed:--} $why rc=$3,stage=$4,began=$5,ended=$now,cpu=$6,peak=$peak" >&8
}

# Tells the connection that started this, if it is still there, at most three times a second: the ledger is the truth.
ring() {
  fraction=${now#*.}
  moment=${now%%.*}${fraction%"${fraction#?}"}
  if [ "$((moment - rang))" -ge 3 ]; then
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
    if [ ! -d "$dir" ] || [ -h "$dir/rc" ] || [ -h "$dir/why" ]; then
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

# sizes_in BATCH FILE...: as of `ls -ln`, of those that are there.
sizes_in() {
  cd "$W/runs/$1" || return 0
  shift
  # shellcheck disable=SC2012 # names are ours
  LC_ALL=C ls -ln "$@"
  return 0
} 2>/dev/null

# signal_task BATCH TASK NAME: to all processes of the task. Answers "sent" or "none".
signal_task() {
  if ! { cd "$W/runs/$1" && members_of "$1" "$2"; }; then
    echo none
    return
  fi
  case $3 in INT | TERM | KILL | HUP | QUIT) ln -s signal "$2.why" ;; esac
  if signal_members "$3"; then found=sent; else found=none; fi
  [ "$3" != KILL ] || kill_carrying "SSHGRID_RUN=${1%%-*}-$2/"
  echo "$found"
} 2>/dev/null

# members_of BATCH TASK, in the folder of the batch: all processes of the task in $members; status 1 when it is not under way.
# Who was below the lane while it had this task before and after the look belongs to it, whatever it did to itself; others
# are known by their environment.
members_of() {
  members=
  lane=$(lane_of "$2") && link_target "lane.${lane:-0}" && identity_alive "$target" || return
  family=$(below_lane "$pid")
  { [ -n "$family" ] && [ "$(lane_of "$2")" = "$lane" ]; } || return
  others=$(grep -Fxlsz "SSHGRID_RUN=${1%%-*}-$2/" /proc/[0-9]*/environ)
  # shellcheck disable=SC2086 # a word each
  members=$(printf '%s\n' $family $others | sed 's/[^0-9]//g' | sort -u)
}

signal_members() { # SIGNAL; status 1 when nobody got it
  missed=1
  for member in $members; do kill -"$1" "$member" && missed=0; done
  return "$missed"
}

lane_of() { under_way | while read -r task lane _; do [ "$task" != "$1" ] || echo "$lane"; done; }

below_lane() {
  count_lane_levels
  tree "$1" | while read -r member _ level; do [ "$level" -le "$levels" ] || echo "$member"; done
}

# The generations of processes that are the lane itself.
count_lane_levels() { if [ "$ISOLATION" = pidns ]; then levels=2; else levels=1; fi; }

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
