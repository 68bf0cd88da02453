# shellcheck shell=sh
# A batch: many runs of one program with one start. It is a run as in node.sh (claimed, built, followed and cleaned like
# one), whose job.sh has the number of TASKS, and ends with one line `task ...` for each. More tasks may be added while
# it runs. Its lane is the process that runs one task after the other; when a task kills it, another lane follows.
# Sourced by the control shell and the starter of a connection and by the wrapper, after node.sh; run as `sh batch.sh
# lane ...` for the lane, which parses only this file and job.sh: forks are what a task costs.
#
#   runs/<batch>/               as of any run, and
#     job.N.sh                  from N = 2 on: tasks that were added; or a link, made by the lane when it found no more
#     ledger                    records of 128 bytes, made (blank) at the start, so that a full disk loses no exit code:
#                               "begin TASK LANE UPTIME ." and "end TASK LANE PRINTED WHY rc=... ."
#     lane.N                    link: the lane's process
#     TASK.out  TASK.err        its output. The creator of `out` owns the task: a lane, or a refusal
#     TASK.why                  link: signal, or the limit that was exceeded (wall, memory, output)
#     TASK.peak                 bytes of memory, of a task that ran long enough to be measured
#     work                      the files that belong to the tasks; each gets a copy
#     work.N.K                  the lane's current folder for its tasks: another one after a task has left files in it
#     room.N  cpu.N             of the lane: whether the disk is full, and what `times` printed last
#
# Files cost more than forks on some file systems: a task has no others.
# shellcheck disable=SC2153,SC2154 # set by job.sh and node.sh
# A task's name is that of its run without the grid. Values arrive as positional parameters or as files, quoted once.

# --- the wrapper's part --------------------------------------------------------------------------------------------------

# Make the records of all tasks at once.
create_ledger() { blank_records "$TASKS" >ledger; }

blank_records() {
  left=$1
  while [ "$left" -gt 0 ]; do
    printf '%127s\n%127s\n' '' '' || return
    left=$((left - 1))
  done
}

# In the foreground: background jobs, and so the programs, would ignore INT.
run_tasks() {
  exec 8<>ledger
  watch_tasks </dev/null >/dev/null 2>&1 8>&- 9>&- &
  (run_lane 1)
  exec 8>&-
  close_parts
  [ "$ISOLATION" = pidns ] || kill_by_environment "SSHGRID_BATCH=$RUN/" || printf '' >strays
}

# Usually the lane has done so. When it was killed, no lane would run tasks that are added from now on.
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

# run_lane LANE: run a lane, and another one when it dies. A lane shares its session with the task that it runs, and a
# task may kill its own group: the task has then ended by that, and a new lane runs the rest. (A session for each task
# would double the cost of a small one.)
run_lane() {
  deaths=0
  while [ ! -h why ]; do
    [ ! -h "lane.$1" ] || rm -f "lane.$1"
    (start_lane "$1") </dev/null >/dev/null
    code=$?
    [ "$ISOLATION" = pidns ] || kill_group "lane.$1"
    case $code in 0 | 74) return ;; esac
    task=$(under_way | while read -r task lane _; do [ "$lane" != "$1" ] || echo "$task"; done)
    if [ -z "$task" ]; then # a process left by an earlier task may have killed it, and more tasks may have been added
      deaths=$((deaths + 1))
      if [ "$deaths" -lt 3 ]; then continue; else return; fi
    fi
    kill_by_environment "SSHGRID_RUN=${RUN%%-*}-$task/"
    read_uptime
    why=$(readlink "$task.why") || why=-
    write_end "$task" "$1" "$code" run "$now" ""
  done
}

start_lane() {
  own_pid
  record_identity "$own" "lane.$1" || exit 74
  # shellcheck disable=SC3045 # dash, busybox and bash all have it
  [ -z "$ADDRESS_SPACE_KB" ] || ulimit -v "$ADDRESS_SPACE_KB" 2>/dev/null
  # A session of its own: inside a pid namespace too, `kill 0` reaches the whole group.
  set -- setsid /bin/sh "${LIB%/*}/batch${LIB##*/node}" lane "$W" "$RUN" "$BOOT" "$1"
  # shellcheck disable=SC2086 # two options or none
  [ "$ISOLATION" != pidns ] || set -- unshare $USER_NAMESPACE --pid --fork --kill-child=KILL --mount-proc "$@"
  exec "$@"
}

# Set $own to the process of this very subshell: `$$` is that of the first shell. Two system calls where /proc exists.
own_pid() {
  here=$PWD
  if cd -P /proc/self 2>/dev/null; then
    own=${PWD##*/}
    cd "$here" || exit 70
  else
    # shellcheck disable=SC2016 # for the other shell
    own=$(exec /bin/sh -c 'echo "$PPID"')
  fi
}

# Print "TASK LANE UPTIME" of each task that has begun and not ended.
under_way() {
  awk '
    !/[.]$/ { exit }
    { lane[$2] = $1 == "begin" ? $3 : 0; began[$2] = $4 }
    END { for (task in lane) if (lane[task]) print task, lane[task], began[task] }' ledger
}

# The watchdog of all tasks: checks the lease of the batch, the limits and the memory of each task, and, without pid
# namespaces, kills what is left of tasks that have ended. Once a second; more often where a limit may be exceeded in
# less.
watch_tasks() {
  trap '' INT TERM
  every=100
  [ -z "$MEMORY_LIMIT$OUTPUT_LIMIT" ] || every=20
  [ -z "$WALL_LIMIT" ] || [ "$((WALL_LIMIT / 4))" -ge "$every" ] || every=$((WALL_LIMIT / 4))
  [ "$every" -ge 10 ] || every=10
  rest=$every
  full_check_at=0
  while sleep_hundredths "$rest"; do
    if [ -n "$LEASE" ] && is_lease_over; then end_batch; fi
    uptime_hundredths
    full_check=0
    [ "$hundredths" -lt "$full_check_at" ] || { full_check=1 full_check_at=$((hundredths + 95)); }
    check_tasks
    if [ "$full_check" = 1 ] && [ "$ISOLATION" != pidns ]; then kill_task_strays; fi
  done
}

sleep_hundredths() {
  if [ "$1" -lt 100 ]; then sleep "0.$1" 2>/dev/null || sleep 1; else sleep 1; fi
}

# No lane starts a task from here on.
end_batch() {
  ln -sf lease why
  for link in lane.*; do link_target "$link" && identity_alive "$target" && kill -9 "$pid"; done
  kill_by_environment "SSHGRID_BATCH=$RUN/"
  kill -9 0
}

# Check the limits of all tasks that run. Sets $rest to the time until the next check, at most until the next wall
# limit.
check_tasks() {
  rest=$every
  # shellcheck disable=SC2046 # three words a task
  set -- $(under_way)
  while [ "$#" -ge 3 ]; do
    case $3 in *.*) began=${3%.*}${3#*.} ;; *) began=${3}00 ;; esac
    age=$((hundredths - began))
    # As for single runs: a shorter task is not checked.
    if [ "$age" -ge 10 ] && ! has_limit_reason "$1"; then check_task "$1" "$2" "$age"; fi
    shift 3
  done
}

has_limit_reason() {
  link_target "$1.why" || return
  case $target in wall | memory | output) ;; *) return 1 ;; esac
}

check_task() { # TASK LANE AGE
  find_exceeded_limit "$@"
  if [ -n "$passed" ]; then
    # Noted before acting; it replaces a signal that the program survived.
    ln -sf "$passed" "$1.why"
    end_task "$1" "$passed" &
  elif [ -n "$WALL_LIMIT" ] && [ "$((WALL_LIMIT - $3))" -lt "$rest" ]; then
    rest=$((WALL_LIMIT - $3))
    [ "$rest" -ge 10 ] || rest=10
  fi
}

find_exceeded_limit() { # TASK LANE AGE: set $passed to its name, or to nothing
  passed=
  if [ -n "$WALL_LIMIT" ] && [ "$3" -ge "$WALL_LIMIT" ]; then
    passed=wall
  elif [ -n "$OUTPUT_LIMIT" ] && is_output_over_limit "$1.out" "$1.err"; then
    passed=output
  elif [ "$MEMORY_LIMIT$full_check" != 0 ] && link_target "lane.$2" && identity_alive "$target"; then
    count_lane_levels
    measure_tree "$pid" "$levels" "$1.peak"
    if [ -n "$MEMORY_LIMIT" ] && [ "$memory" -gt "$MEMORY_LIMIT" ]; then passed=memory; fi
  fi
}

# end_task TASK WHY: TERM, five seconds, KILL; KILL at once for memory. The lane continues, so its group is not
# signalled.
end_task() {
  until members_of "$RUN" "$1"; do
    [ -n "$(lane_of "$1")" ] || return
    sleep_hundredths 10
  done
  known=$(identities_of "$members")
  if [ "$2" != memory ]; then
    signal_members TERM
    uptime_hundredths
    until=$((hundredths + 500))
    while [ "$hundredths" -lt "$until" ] && [ -n "$(lane_of "$1")" ]; do
      sleep_hundredths 10
      uptime_hundredths
    done
  fi
  # Also processes that have lost their parent meanwhile, and had cleared their environment before.
  for identity in $known; do identity_alive "$identity" && kill -9 "$pid"; done
  members_of "$RUN" "$1" && signal_members KILL
  kill_by_environment "SSHGRID_RUN=${RUN%%-*}-$1/"
}

identities_of() { # "PID PID ..."
  for pid in $1; do start_time_of "$pid" && echo "pid=$pid,start=$started,boot=$BOOT"; done
}

# First find the processes, then the tasks that run: in the other order a new task's process would count as a stray.
kill_task_strays() {
  there=$(grep -Fxlsz "SSHGRID_BATCH=$RUN/" /proc/[0-9]*/environ)
  [ -n "$there" ] || return 0
  under_way | {
    set -- -e "SSHGRID_RUN=/"
    while read -r task _; do set -- "$@" -e "SSHGRID_RUN=${RUN%%-*}-$task/"; done
    # shellcheck disable=SC2086,SC2013 # files of /proc
    for stray in $(grep -FxLsz "$@" $there); do
      # Checked twice: a process in the middle of exec has no environment for a moment.
      if grep -Fxqsz "SSHGRID_BATCH=$RUN/" "$stray" && ! grep -Fxqsz "$@" "$stray"; then
        stray=${stray#/proc/}
        kill -9 "${stray%/environ}"
      fi
    done
  }
}

# --- a lane: one task after another --------------------------------------------------------------------------------------

lane_main() {
  DIR=$W/runs/$RUN
  cd "$DIR" || exit 70
  # Caught, not ignored: the programs would inherit an ignored signal.
  trap : HUP INT QUIT TERM PIPE USR1 USR2
  # shellcheck disable=SC3045 # dash, busybox and bash all have it
  ulimit -c 0 2>/dev/null
  exec 2>/dev/null
  umask 022
  # From here on `>` creates a file or fails, in one step.
  set -C
  notified_at=0
  work=
  folder=0
  read_uptime
  # shellcheck source=/dev/null
  . ./job.sh
  part=1
  # shellcheck source=/dev/null
  while has_next_part; do notified_at=0 && . "./job.$part.sh"; done
  notified_at=0
  notify_master_of_batch
}

read_uptime() { { read -r now _ </proc/uptime; } || now=$(date +%s); }

# has_next_part: status 0 when more tasks were added. Otherwise none can be added from now on: the name is taken, by a
# link that leads nowhere.
has_next_part() {
  part=$((part + 1))
  [ -e "job.$part.sh" ] || wait_for_more || { ln -s closed "job.$part.sh"; [ -e "job.$part.sh" ]; }
}

# A master that is notified now that all tasks have ended may add more: a start of their own would cost more than this
# wait.
wait_for_more() {
  [ "$KEEP_WARM" = 1 ] || return
  notified_at=0
  notify_master_of_batch
  looks=0
  while [ "$looks" -lt 8 ] && [ ! -h why ] && sleep 0.05; do
    looks=$((looks + 1))
    [ ! -e "job.$part.sh" ] || return 0
  done
  return 1
}

# Set $work to the next current folder: the first empty one, also of those that an earlier lane made. Several folders
# are made with one fork.
choose_folder() {
  until [ -n "$work" ] && [ -r "$work" ] && [ -w "$work" ] && [ -x "$work" ] && is_empty "$work"; do
    folder=$((folder + 1))
    work=work.$LANE.$folder
    [ ! -d "$work" ] || continue
    # shellcheck disable=SC2046 # numbers
    mkdir $(printf "work.$LANE.%d " $(next_folder_numbers))
    return
  done
}

# Print the numbers of the folders to make: the more were needed so far, the more.
next_folder_numbers() {
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

# task NAME INPUT ASSIGNMENTS WORD...: run one task; a line of job.sh. Does nothing when another lane has it, or it was
# refused.
# The program is a simple command of this very shell, which dash starts without copying itself. The variables are
# assignments before the command: the shell keeps its own, whatever their names.
task() {
  [ ! -e "$1.out" ] || return 0
  [ ! -h why ] || exit 74
  # No space for the file: no lane could continue, and the tasks that have not begun are started on another node.
  printf '' >"$1.out" || { [ -e "$1.out" ] && return 0; exit 74; }
  name=$1
  is_prepared=1
  prepare_folder || is_prepared=0
  printf '%-126s.\n' "begin $name $LANE $now" >&8
  input=/dev/null
  [ "$2" = - ] || input=$W/objects/$2
  # The redirection is inside of the command, so that bash does not add a message about a killed program to its standard
  # error. dash and busybox add one.
  command="$COMMON $3 "'"$@" 2>&6 6>&-'
  shift 3
  began=$now
  why=-
  code=127
  if [ "$is_prepared" = 0 ]; then
    stage=layout
    why=data
  elif ! tools_present; then
    stage=run
    why=toolchain
  else
    # When its streams cannot be opened, the program does not start.
    stage=start
    cd "$work" && { stage=run && eval "$command"; } <"$input" >>"../$name.out" 6>"../$name.err" 8>&- 9>&-
    code=$?
    cd "$DIR" || exit 70
    # In a pid namespace: kill all processes but the lane. Elsewhere watch_tasks does so within a second.
    [ "$ISOLATION" != pidns ] || kill -9 -1
  fi
  record_end
  notify_master_of_batch
  [ "$DATA" = 0 ] || rm -rf "$work"
}

# prepare_folder: choose the task's folder and copy its files into it: one fork, however many they are.
prepare_folder() {
  choose_folder || return
  [ "$DATA" = 1 ] || return 0
  { cp -RP --reflink=auto work/. "$work" || cp -RP work/. "$work"; } || return
  read_uptime
}

record_end() {
  [ ! -h "$name.why" ] || why=$(readlink "$name.why")
  # No space for this: the program's output may be incomplete, and few programs notice that.
  printf '%4096s' '' >>"room.$LANE" || why=full
  user=
  system=
  times 1<>"cpu.$LANE" && { read -r _ && read -r user system; } <"cpu.$LANE"
  read_uptime
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

# Notify the connection that started this batch, if it still exists, at most three times a second: the ledger is what
# counts.
notify_master_of_batch() {
  fraction=${now#*.}
  moment=${now%%.*}${fraction%"${fraction#?}"}
  if [ "$((moment - notified_at))" -ge 3 ]; then
    notified_at=$moment
    { echo "end $RUN" >&9; } 2>/dev/null
  fi
}

# --- more tasks (the starter) --------------------------------------------------------------------------------------------

# add_tasks BATCH NOT_AFTER NEEDED PART COUNT: add COUNT tasks to a batch that may end soon; standard input is
# job.PART.sh. Prints what `start` prints: late, missing, unfit; "claimed BATCH.PART", or "already BATCH.PART" when its
# lanes take no more.
add_tasks() {
  label=$1.$4
  dir=$W/runs/$1
  uptime_seconds
  if [ "$now" -gt "$2" ]; then
    echo "late $label"
  elif objects_present "$label" "$3"; then
    if [ ! -d "$dir" ] || [ -h "$dir/rc" ] || [ -h "$dir/why" ]; then
      echo "already $label"
    elif ! { cat >"$dir/part.$4" && blank_records "$5" >>"$dir/ledger"; }; then
      echo "unfit $label no space left in $W"
    elif ln "$dir/part.$4" "$dir/job.$4.sh"; then
      echo "claimed $label"
    else
      echo "already $label"
    fi
  fi
} 2>/dev/null

# --- queries (the control channel) ---------------------------------------------------------------------------------------

# batch_status BATCH SEEN COUNT SMALL: print what is new after SEEN records of the ledger: a line "news" (with
# "compiled"), at most COUNT records, a line "files", and an archive of those outputs of ended tasks that have at most
# SMALL blocks (512 bytes). Without news: the output of poll. Most calls find news, and cost two forks.
# When the wrapper is dead its lanes are ended first: what they have not begun never begins.
batch_status() {
  cd "$W/runs/$1" || { poll "$1"; return; }
  print_news "$2" "$3" "$4" && return
  link_target pid && ! identity_alive "$target" && [ ! -h rc ] && kill_by_environment "SSHGRID_RUN=$1/" "SSHGRID_BATCH=$1/"
  # In this order: after the record of a batch there is no news.
  state=$(poll "$1")
  print_news "$2" "$3" "$4" || echo "$state"
} 2>/dev/null

# Status 1 when there is no news. The first line that awk prints lists the files.
print_news() {
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

# file_sizes BATCH FILE...: print `ls -ln` of those that exist.
file_sizes() {
  cd "$W/runs/$1" || return 0
  shift
  # shellcheck disable=SC2012 # names are ours
  LC_ALL=C ls -ln "$@"
  return 0
} 2>/dev/null

# signal_task BATCH TASK NAME: send a signal to all processes of the task. Prints "sent" or "none".
signal_task() {
  if ! { cd "$W/runs/$1" && members_of "$1" "$2"; }; then
    echo none
    return
  fi
  case $3 in INT | TERM | KILL | HUP | QUIT) ln -s signal "$2.why" ;; esac
  if signal_members "$3"; then found=sent; else found=none; fi
  [ "$3" != KILL ] || kill_by_environment "SSHGRID_RUN=${1%%-*}-$2/"
  echo "$found"
} 2>/dev/null

# members_of BATCH TASK, in the folder of the batch: set $members to all processes of the task; status 1 when it does
# not run. A descendant of the lane that had this task before and after the look belongs to the task, whatever it did to
# itself; other processes are found by their environment.
members_of() {
  members=
  lane=$(lane_of "$2") && link_target "lane.${lane:-0}" && identity_alive "$target" || return
  family=$(task_descendants "$pid")
  { [ -n "$family" ] && [ "$(lane_of "$2")" = "$lane" ]; } || return
  others=$(grep -Fxlsz "SSHGRID_RUN=${1%%-*}-$2/" /proc/[0-9]*/environ)
  # shellcheck disable=SC2086 # a word each
  members=$(printf '%s\n' $family $others | sed 's/[^0-9]//g' | sort -u)
}

signal_members() { # SIGNAL; status 1 when no process received it
  unsent=1
  for member in $members; do kill -"$1" "$member" && unsent=0; done
  return "$unsent"
}

lane_of() { under_way | while read -r task lane _; do [ "$task" != "$1" ] || echo "$lane"; done; }

task_descendants() {
  count_lane_levels
  tree "$1" | while read -r member _ level; do [ "$level" -le "$levels" ] || echo "$member"; done
}

# Set $levels to the generations of processes that are the lane itself.
count_lane_levels() { if [ "$ISOLATION" = pidns ]; then levels=2; else levels=1; fi; }

# refuse_tasks BATCH TASK...: prevent tasks from starting. Prints the names of those that now never start: others have
# begun, or are not known (yet).
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
  lane_main
fi
