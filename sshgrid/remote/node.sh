# shellcheck shell=sh
# The functions that a node runs for a master. Sourced by the long-lived shells of a connection; run as `sh node.sh
# wrapper RUN` for the part of a run that outlives every connection. Needs $W (working folder) and $BOOT (identity of
# this boot).
# POSIX only (dash, busybox, bash): no local, no arrays, no $'..'. Values arrive as positional parameters or as files.
#
#   runs/<grid>-<job>.<attempt>/
#     job.sh    what to do: written by `start`, sourced here; functions layout, compile, program, and the limits
#     out err build.log         the output and error of the program; the output of the compiler
#     work/                     the program's current folder
#     pid       link "pid=N,start=T,boot=B": the wrapper's identity       child   the same for the program's group
#     running   exists after the program (not its build) has started
#     why       link: why it was ended early (wall, memory, output, processes, lease, signal), why it never started
#               (refused), or that the disk was full at its end (full)
#     rc        link "rc=N,...": its presence means the end of the run; made in one step, also on a full disk
#     record    256 bytes made at the start: the current stage, and the result when no inode is left for rc
#
# A redirection that fails at a special builtin (`: >file`) ends the whole shell: use printf instead.

set -u
umask 077
PREPARE_ONLY=0
TASKS=
has_user_namespace=0
page=

# The lane of a batch (batch.sh) runs its tasks. For every other reader of job.sh a task is nothing.
task() { :; }

# --- clocks and identities ---------------------------------------------------------------------------------------------

# Set $now to the node's uptime in whole seconds: wall clocks jump. Systems without /proc use the date.
uptime_seconds() {
  if [ -r /proc/uptime ]; then
    read -r now _ </proc/uptime
    now=${now%%.*}
  else
    now=$(date +%s)
  fi
}

# start_time_of PID: set $started to the start time in clock ticks; status 1 when the process does not exist. A pid and
# a start time together identify a process.
start_time_of() {
  started=
  if [ -d /proc/self ]; then
    stat_line=
    # A program's name may contain a newline, which the kernel does not escape.
    { while IFS= read -r part; do stat_line=$stat_line$part; done </proc/"$1"/stat; } 2>/dev/null || return 1
    # shellcheck disable=SC2086 # split into fields on purpose
    set -- ${stat_line##*') '}
    case ${1-} in '' | Z | X) return 1 ;; esac
    started=${20-}
  else
    kill -0 "$1" 2>/dev/null || return 1
    started=0
  fi
}

# identity_alive pid=N,start=T,boot=B: status 0 when this very process, of this boot, exists.
identity_alive() {
  case $1 in *",boot=$BOOT") ;; *) return 1 ;; esac
  identity=${1%%,boot=*}
  pid=${identity#pid=}
  pid=${pid%%,*}
  start_time_of "$pid" && [ "$started" = "${identity##*start=}" ]
}

link_target() { # LINK: set $target; readlink exists everywhere, but not in POSIX
  [ -h "$1" ] && target=$(readlink "$1" 2>/dev/null) && [ -n "$target" ]
}

record_identity() { # PID LINK
  start_time_of "$1" || started=0
  ln -s "pid=$1,start=$started,boot=$BOOT" "$2" 2>/dev/null
}

# --- starting ----------------------------------------------------------------------------------------------------------

# start RUN NOT_AFTER BUILD NEEDED SHA...: start a run; standard input is job.sh. NEEDED: digests of the objects that
# the run needs even when its build exists, separated by blanks ("-" = none); the SHA... are needed for the build alone.
# Prints one line:
#   late RUN        the node's uptime is past NOT_AFTER: the command was delayed in a dead connection
#   missing RUN S.. the node lacks these objects
#   already RUN     this attempt was started, or cancelled, before
#   unfit RUN WHY   no space, read-only ...
#   claimed RUN     the wrapper has been started
start() {
  run=$1
  not_after=$2
  build=$3
  needed=$4
  shift 4
  uptime_seconds
  if [ "$now" -gt "$not_after" ]; then
    echo "late $run"
    return
  fi
  # Mark the build as used before looking for it: what is in use is not evicted.
  printf '' >"$W/builds/$build.used"
  [ ! -d "$W/builds/$build" ] || set --
  objects_present "$run" "$needed" "$@" || return
  dir=$W/runs/$run
  if ! mkdir "$dir" 2>/dev/null; then
    if [ -d "$dir" ]; then echo "already $run"; else echo "unfit $run cannot make a run folder in $W (disk full or read-only)"; fi
    return
  fi
  # A record of fixed size, made now: it takes the exit code when no inode is left at the end.
  if mkdir "$dir/work" && cat >"$dir/job.sh" && printf '%255s\n' '' >"$dir/record" &&
    printf '' >"$dir/out" && printf '' >"$dir/err" && printf '' >"$dir/wrapper.log"; then
    echo "claimed $run"
    [ "$PREPARE_ONLY" = 1 ] || launch "$run"
  else
    rm -rf "$dir"
    echo "unfit $run no space left in $W"
  fi
} 2>/dev/null

# objects_present LABEL NEEDED SHA...: status 0 when all these objects exist; else print "missing LABEL SHA...".
objects_present() {
  run_label=$1
  needed=$2
  shift 2
  # shellcheck disable=SC2086 # a word each
  [ "$needed" = - ] || set -- "$@" $needed
  absent=
  for sha; do [ -f "$W/objects/$sha" ] || absent="$absent $sha"; done
  [ -z "$absent" ] && return
  echo "missing $run_label$absent"
  return 1
}

# prepare ...: like start, but without starting the wrapper: `converse` does that.
prepare() {
  PREPARE_ONLY=1
  start "$@"
  PREPARE_ONLY=0
}

# launch RUN: start the wrapper in a session of its own. Not as a background job: that would ignore INT for ever, and so
# would the program. `setsid -f` forks without that; where it is unknown, the second of two setsid is a group leader
# already, and therefore forks.
# The run's name is in the environment from the first moment, so that `clean` finds every process by it.
launch() {
  if [ "$SETSID_FORK" = 1 ]; then fork=-f; else fork=setsid; fi
  SSHGRID_RUN="$1/" setsid "$fork" /bin/sh "$LIB" wrapper "$W" "$1" "$BOOT" </dev/null >/dev/null 2>"$W/runs/$1/wrapper.log"
}

# --- the wrapper: outlives the connection and the master -----------------------------------------------------------------

# notify_master WORDS: write a line to the connection that started this run, if it still exists (descriptor 9). It is
# only a hint: rc is what counts.
notify_master() { { echo "$1" >&9; } 2>/dev/null; }

wrapper() {
  RUN=$1
  DIR=$W/runs/$RUN
  cd "$DIR" || exit 70
  # Caught, not ignored: the program would inherit an ignored signal.
  trap : HUP INT QUIT TERM PIPE USR1 USR2
  SSHGRID_RUN=$RUN/
  export SSHGRID_RUN
  # The link is the claim: a run has one wrapper, and none after a master has called block_start.
  if ! record_identity $$ pid; then
    uptime_seconds
    began=$now
    [ -h pid ] || record 74 stage=layout
    exit 70
  fi
  # shellcheck source=/dev/null
  . ./job.sh
  run_stages
  notify_master "end $RUN"
  # Kill what is left of a run without a pid namespace, then this process's own group: the watchdog and its sleep.
  [ "$ISOLATION" = pidns ] || [ "$KEEP_CHILDREN" = 1 ] || has_killed_strays || kill_strays "$RUN"
  [ "$KEEP_CHILDREN" = 1 ] || kill -9 0
}

# In the folder of a run that has ended: status 0 for a batch, which kills its strays before it writes its record.
# Strays of a compiler are not among these.
has_killed_strays() { [ -e ledger ] && [ ! -e compiled ] && [ ! -e strays ] && link_target rc && case $target in *,stage=run,*) ;; *) false ;; esac; }

# converse NONCE: run the wrapper in the foreground of a channel, whose streams become the program's.
converse() {
  stty -echo 2>/dev/null
  printf '\n%s\n' "$1"
  [ -t 2 ] || printf '\n%s\n' "$1" >&2
  stty echo 2>/dev/null
  wrapper "$RUN" 3>&2 2>"$W/runs/$RUN/wrapper.log"
}

# Run all stages of a run: the build if it does not exist, the program or all tasks of a batch (batch.sh), the record.
run_stages() {
  # shellcheck disable=SC2153 # BUILD comes from job.sh
  BUILD_DIR=$W/builds/$BUILD
  uptime_seconds
  began=$now
  step=layout
  if [ -n "$TASKS" ]; then
    # shellcheck source=sshgrid/remote/batch.sh
    . "${LIB%/*}/batch${LIB##*/node}"
    create_ledger || { record 74 "stage=$step"; return; }
  fi
  builds=0
  if [ ! -d "$BUILD_DIR" ]; then
    builds=1
    build || { record "$?" "stage=$step"; return; }
  fi
  if [ "$DATA" = 1 ] && ! copy_data; then
    ln -s data why
    record 74 stage=layout
    return
  fi
  step=start
  printf '' >running
  # Other runs wait for a build to end; without a build nothing waits for the start of the program.
  [ "$builds" = 0 ] || notify_master "running $RUN"
  if [ -n "$TASKS" ]; then
    run_tasks
    step=run
  else
    guarded program "$WALL_LIMIT"
  fi
  record "$?" "stage=$step"
}

# Make the build in a hidden folder, sync it and rename it: a partial build is never visible. When two runs build the
# same, the first rename counts.
build() {
  aside=$W/builds/.$BUILD.$RUN
  laid_out=0
  { mkdir "$aside" && cd "$aside" && layout && laid_out=1; }
  cd "$DIR" || return 74
  if [ "$laid_out" = 0 ]; then
    rm -rf "$aside"
    return 74
  fi
  if [ "$COMPILES" = 1 ]; then
    guarded build "$BUILD_LIMIT" || { status=$?; rm -rf "$aside"; return "$status"; }
    printf '' >compiled
  fi
  step=layout
  find "$aside" -type f -exec sync {} + 2>/dev/null
  [ -d "$BUILD_DIR" ] || mv "$aside" "$BUILD_DIR" 2>/dev/null
  # A second run whose mv follows the first rename moves its folder into that of the first.
  rm -rf "$aside" "$BUILD_DIR/.$BUILD.$RUN"
  [ -d "$BUILD_DIR" ] || return 74
}

# place_source SHA PATH MODE: copy one source file into the build folder (the current folder).
place_source() {
  case $2 in */*) mkdir -p "./${2%/*}" || return ;; esac
  cp "$W/objects/$1" "./$2" && chmod "$3" "./$2"
}

# Copy the files that belong to the run into its folder: copies, as a program may write into its input files.
copy_data() (
  umask 022
  cd work && data
)

# place_data SHA PATH MODE: copy one of them. Where the file system can, the copy shares its blocks until one of them is
# written.
place_data() {
  case $2 in */*) mkdir -p "./${2%/*}" || return ;; esac
  object=$W/objects/$1
  if [ ! -f "$object" ]; then
    copy_lent_object "$1" "./$2"
  elif [ "$LEND" = 1 ] && size_of "$object" && [ "$size" -ge "$LENT_BYTES" ] && is_used_by_this_run_only "$1"; then
    lend "$1" "$2"
  else
    { cp --reflink=auto "$object" "./$2" 2>/dev/null || cp "$object" "./$2"; } && touch -c "$object"
  fi && chmod "$3" "./$2"
}

LENT_BYTES=33554432 # smaller files are copied: that is quick enough

# is_used_by_this_run_only SHA: status 0 when this run uses the object only as a file of its folder, and no other run
# that has not ended names it.
is_used_by_this_run_only() {
  [ "$1" != "$INPUT" ] || return
  # shellcheck disable=SC2013 # one path each: with blanks in $W nothing is lent
  for script in $(grep -lF "$1" "$W"/runs/*/job*.sh 2>/dev/null); do
    of=${script%/*}
    [ "$of" = "$DIR" ] || [ -h "$of/rc" ] || return
  done
}

# lend SHA PATH: move the object itself into the run's folder, which saves the copy; `return_lent_objects` moves it
# back. The link SHA.lent says where the object is meanwhile.
lend() {
  { [ -d ../lent ] || mkdir ../lent; } && inode_of "$object" && ln -s "$inode/$2" "../lent/$1" || return
  ln -sf "$DIR/work/$2" "$object.lent"
  mv "$object" "./$2"
}

# copy_lent_object SHA FILE: copy an object that was lent after this run was started. Its digest says whether it is
# unchanged.
copy_lent_object() {
  for place in "$(readlink "$object.lent")" "$object.part"; do
    if [ -f "$place" ] && cp "$place" "$2" && sha256_of "$2" && [ "$sum" = "$1" ]; then return 0; fi
  done 2>/dev/null
  return 1
}

inode_of() { # FILE: set $inode, and $links to the number of its names
  # shellcheck disable=SC2012 # ls -i is the one portable way to read both
  line=$(ls -lnid "$1" 2>/dev/null) || return
  # shellcheck disable=SC2086 # split into fields on purpose
  set -- $line
  inode=$1
  links=$3
}

# return_lent_objects RUN: move the lent objects back beside the other objects. The program may have changed them: until
# its digest is checked, such a file counts as a partial upload. Files with a second name, and other files of the same
# name, stay.
return_lent_objects() {
  for lent in "$W/runs/$1/lent"/*; do
    link_target "$lent" || continue
    object=$W/objects/${lent##*/}
    file=$W/runs/$1/work/${target#*/}
    rm -f "$object.lent"
    if [ -f "$object" ] || [ -h "$file" ] || ! inode_of "$file"; then continue; fi
    if [ "$inode:$links" = "${target%%/*}:1" ]; then chmod 600 "$file" && touch "$file" && mv -f "$file" "$object.part"; fi
  done
}

# unpack_data SHA: unpack an archive of many small files. Their times are the current time, and this account owns them.
unpack_data() { tar -x -m -o -f "$W/objects/$1" && touch -c "$W/objects/$1"; }

# guarded STAGE HUNDREDTHS: run the stage in a session of its own, with a watchdog beside it; the status is that of the
# stage. Sets $step to "build" or "run" when the stage has really begun.
# In the foreground: a background job would ignore INT.
guarded() {
  [ ! -h child ] || rm -f child
  watchdog "$1" "$2" </dev/null >/dev/null 2>&1 9>&- &
  watchdog_pid=$!
  # An interactive run stays in the session of its terminal.
  if [ "$INTERACTIVE" = 1 ]; then set -- "$1"; else set -- "$1" setsid; fi
  # shellcheck disable=SC2086 # one word or none
  ${2-} /bin/sh "$LIB" child "$W" "$RUN" "$BOOT" "$1" 9>&-
  status=$?
  kill -9 "$watchdog_pid" 2>/dev/null
  [ "$ISOLATION" = pidns ] || [ "$INTERACTIVE$KEEP_CHILDREN" != 00 ] || kill_group child
  begun=
  read -r begun _ <record
  case $1,$begun in
    build,build) step=build ;;
    program,program) step=run ;;
  esac
  return "$status"
}

# kill_group LINK: kill the rest of the group that this link names, whose leader has ended.
kill_group() {
  link_target "$1" || return 0
  leader=${target#pid=}
  kill -9 -"${leader%%,*}" 2>/dev/null
}

# child STAGE: the first process of the stage's session; signals go to its group.
child() {
  DIR=$W/runs/$RUN
  cd "$DIR" || exit 70
  record_identity $$ child || exit 70
  # shellcheck source=/dev/null
  . ./job.sh
  case $ISOLATION in
    pidns)
      # shellcheck disable=SC2086 # two options or none
      exec unshare $USER_NAMESPACE --pid --fork --kill-child=KILL --mount-proc \
        /bin/sh "$LIB" init "$W" "$RUN" "$BOOT" "$1"
      ;;
    *)
      # In a user namespace of its own the system counts the run's processes apart from the others of the account.
      if [ -n "$PROCESS_LIMIT" ] && [ "$1" = program ] && unshare --user --map-current-user true 2>/dev/null; then
        exec unshare --user --map-current-user /bin/sh "$LIB" child_in_namespace "$W" "$RUN" "$BOOT" "$1"
      fi
      cap_processes "$1"
      stage "$1"
      ;;
  esac
}

child_in_namespace() {
  cd "$W/runs/$RUN" || exit 70
  # shellcheck source=/dev/null
  . ./job.sh
  has_user_namespace=1
  cap_processes "$1"
  stage "$1"
}

# cap_processes STAGE: set a system limit, as far as possible, that keeps the number of processes from growing faster
# than the watchdog looks. It does not bind root. Before Linux 5.14, and without a namespace, the system counts all
# processes of the account, in other containers too: so a limit is tried first, by starting a process.
cap_processes() {
  { [ -n "$PROCESS_LIMIT" ] && [ "$1" = program ]; } || return 0
  most=$((2 * PROCESS_LIMIT + 50))
  if [ "$has_user_namespace" = 0 ] || ! can_start_within "$most"; then
    there=$(cat /proc/[0-9]*/status 2>/dev/null | awk -v uid="$(id -u)" '
      $1 == "Uid:" { mine = $2 == uid }
      $1 == "Threads:" && mine { total += $2 }
      END { print total + 0 }')
    most=$((most + there))
    can_start_within "$most" || return 0
  fi
  limit_processes "$most"
}

# shellcheck disable=SC3045 # bash has -u, busybox and dash -p
can_start_within() {
  { prlimit --nproc="$1:$1" /bin/sh -c '(:); :' || (ulimit -u "$1" && (:)) || (ulimit -p "$1" && (:)); } 2>/dev/null
}

# shellcheck disable=SC3045
limit_processes() {
  { prlimit --pid $$ --nproc="$1:$1" || ulimit -u "$1" || ulimit -p "$1"; } 2>/dev/null
  return 0
}

# The first process of a pid namespace: caught signals reach the program through the group; its exit ends all others.
init() {
  trap : HUP INT QUIT TERM USR1 USR2
  cd "$W/runs/$RUN" || exit 70
  # shellcheck source=/dev/null
  . ./job.sh
  [ -z "$USER_NAMESPACE" ] || has_user_namespace=1
  cap_processes "$1"
  (stage "$1")
  exit
}

stage() {
  # shellcheck disable=SC3045 # dash, busybox and bash all have them
  {
    [ -z "$ADDRESS_SPACE_KB" ] || [ "$1" != program ] || ulimit -v "$ADDRESS_SPACE_KB"
    ulimit -c 0
  } 2>/dev/null
  case $1 in
    build)
      cd "$W/builds/.$BUILD.$RUN" || exit 70
      set -- "$W/runs/$RUN"
      # Space for the compiler's messages, reserved now: a compiler that fills the disk could not print any. The reader
      # strips the blanks.
      printf '%8192s' '' >"$1/build.log"
      { record_stage build "$1/record" && environment && compile; } </dev/null 1<>"$1/build.log" 2>&1
      ;;
    program)
      tools_present || { ln -s toolchain why; exit 127; }
      cd work || exit 70
      input=/dev/null
      [ -z "$INPUT" ] || input=$W/objects/$INPUT
      # From here on the user's variables may have any name, also those of this file: what is still needed is in the
      # parameters.
      set -- "$W/builds/$BUILD" "$input" "$INTERACTIVE"
      umask 022
      environment
      if [ "$3" = 0 ]; then
        { record_stage program ../record && program "$1"; } <"$2" >>../out 2>>../err
      else
        { record_stage program ../record && program "$1"; } 2>&3 3>&-
      fi
      exit 70
      ;;
  esac
}

# record_stage STAGE FILE: from here on a failure is the program's or the compiler's. Written into existing bytes.
record_stage() { printf '%-9s' "$1" 1<>"$2"; }

# record CODE STAGE: write the result in a single step.
record() {
  { { times; } >cpu; } 2>/dev/null
  # No space for these few bytes: the program's output may be incomplete, and few programs notice that.
  [ -s cpu ] || ln -s full why 2>/dev/null
  cpu=
  { read -r _ && read -r user system && cpu=$user+$system; } <cpu
  uptime_seconds
  peak=
  # shellcheck disable=SC2094 # read here, written by the watchdog
  [ -r peak ] && read -r peak <peak
  result="rc=$1,$2,began=$began,ended=$now,cpu=$cpu,peak=$peak"
  ln -s "$result" rc 2>/dev/null || printf '%s\n' "$result" 1<>record
}

# --- limits --------------------------------------------------------------------------------------------------------------

# watchdog STAGE HUNDREDTHS: end the stage when it exceeds a limit: TERM, five seconds, KILL. Note the reason before
# acting. Look ten times in the first second (short limits), then once a second, or five times when processes are
# counted: they can double in a moment.
watchdog() { # STAGE HUNDREDTHS
  trap '' INT TERM
  looks=0
  deadline=
  fraction=
  # The user's limits do not apply to the compiler.
  [ "$1" = program ] || { MEMORY_LIMIT=; PROCESS_LIMIT=; }
  if [ -n "$2" ]; then
    uptime_hundredths
    deadline=$((hundredths + $2))
  fi
  while :; do
    looks=$((looks + 1))
    pause=1
    [ -z "$PROCESS_LIMIT" ] || pause=0.2
    [ "$looks" -gt 10 ] || pause=0.1
    if [ -n "$deadline" ]; then
      uptime_hundredths
      rest=$((deadline - hundredths))
      [ "$rest" -gt 0 ] || break
      [ "$rest" -ge 100 ] || [ "$looks" -le 10 ] || [ -n "$PROCESS_LIMIT" ] || pause=0.$(printf %02d "$rest")
    fi
    sleep "$pause" 2>/dev/null || sleep 1
    check_limits || return
  done
  end_stage wall
}

# Set $hundredths to the uptime in hundredths of a second.
uptime_hundredths() {
  if [ -r /proc/uptime ]; then
    read -r now _ </proc/uptime
    fraction=${now#*.}
    hundredths=$((${now%%.*} * 100 + ${fraction#0}))
  else
    hundredths=$(($(date +%s) * 100))
  fi
}

# The lease is an absolute time of this node's uptime: a late renewal cannot extend it by more than it says.
is_lease_over() {
  until=$LEASE
  [ -r lease ] && read -r until <lease
  uptime_seconds
  [ "$now" -ge "$until" ]
}

# Check the lease and the limits of the run; status 1 when the stage has been ended.
check_limits() {
  if [ -n "$LEASE" ] && is_lease_over; then
    ln -sf lease why 2>/dev/null
    kill_stage
    return 1
  fi
  if [ -n "$OUTPUT_LIMIT" ] && [ -e out ] && is_output_over_limit out err; then
    end_stage output
    return 1
  fi
  [ -n "$MEMORY_LIMIT$PROCESS_LIMIT" ] || [ "$((looks % 5))" = 1 ] || return 0
  link_target child || return 0
  child_pid=${target#pid=}
  measure_tree "${child_pid%%,*}" 0 peak
  if [ -n "$MEMORY_LIMIT" ] && [ "$memory" -gt "$MEMORY_LIMIT" ]; then
    ln -sf memory why 2>/dev/null
    kill_stage
    return 1
  fi
  # The processes of sshgrid above the program do not count.
  if [ -n "$PROCESS_LIMIT" ] && [ "$processes" -gt "$((PROCESS_LIMIT + 3))" ]; then
    ln -sf processes why 2>/dev/null
    kill_stage
    return 1
  fi
}

# is_output_over_limit OUT ERR: status 0 when both files together exceed the output limit.
is_output_over_limit() {
  # shellcheck disable=SC2046,SC2012 # two lines of nine fields
  set -- $(LC_ALL=C ls -ln "$1" "$2" 2>/dev/null)
  [ "$((${5:-0} + ${14:-0}))" -gt "$OUTPUT_LIMIT" ]
}

# measure_tree PID OURS FILE: set $processes to the number of processes below PID, without its first OURS generations,
# and $memory to their resident bytes; FILE keeps the largest value so far.
measure_tree() {
  # Not before the first look: most runs have ended by then.
  [ -n "$page" ] || page=$(getconf PAGESIZE 2>/dev/null) || page=4096
  family=$(tree "$1" | {
    total=0 count=0
    while read -r _ bytes level; do
      [ "$level" -le "$2" ] || { total=$((total + bytes)) count=$((count + 1)); }
    done
    echo "$count $total"
  })
  processes=${family% *}
  memory=${family#* }
  most=0
  [ -r "$3" ] && read -r most <"$3"
  [ "$memory" -le "$most" ] || echo "$memory" >"$3"
}

end_stage() { # WHY: it replaces a signal that the program survived
  ln -sf "$1" why 2>/dev/null
  signal_stage TERM
  waited=0
  while [ "$waited" -lt 50 ]; do
    link_target child && identity_alive "$target" || return
    sleep 0.1 2>/dev/null || sleep 1
    waited=$((waited + 1))
  done
  kill_stage
}

# --- process trees -------------------------------------------------------------------------------------------------------

# tree PID: print "pid resident-bytes generation" of the process and all its descendants. A process's name may contain
# spaces, brackets and newlines. Numbers by %.0f: mawk prints large ones as 1.2e+10 otherwise.
tree() {
  cat /proc/[0-9]*/stat 2>/dev/null | awk -v root="$1" -v page="${page:-4096}" '
    {
      record = record $0
      rest = record
      sub(/^.*\) /, "", rest)
      if (split(rest, field, " ") < 40) next
      split(record, word, " ")
      pid = word[1]
      parent[pid] = field[2]
      resident[pid] = field[22] * page
      record = ""
    }
    END {
      inside[root] = 1
      do {
        grown = 0
        for (p in parent) if (!(p in inside) && parent[p] in inside) { inside[p] = inside[parent[p]] + 1; grown = 1 }
      } while (grown)
      for (p in inside) if (p in parent) printf "%s %.0f %d\n", p, resident[p], inside[p]
    }'
}

descendants_of() { tree "$1" | while read -r member _; do echo "$member"; done; }

# Only `kill -NAME -PGID` works in every shell; `kill -s NAME -- -PGID` does not.
signal_stage() { # SIGNAL, in the run's folder
  link_target child && identity_alive "$target" || return 1
  leader=$pid
  # unshare blocks INT and TERM only; any other signal would end it, and the whole run with it.
  case $ISOLATION$1 in
    pidnsINT | pidnsTERM | session*) kill -"$1" -"$leader" 2>/dev/null && return ;;
  esac
  # An interactive run has no group of its own.
  unsent=1
  for relative in $(descendants_of "$leader"); do
    [ "$(cat "/proc/$relative/comm" 2>/dev/null)" = unshare ] || { kill -"$1" "$relative" 2>/dev/null && unsent=0; }
  done
  return "$unsent"
}

kill_stage() {
  if link_target child && identity_alive "$target"; then
    family=$(descendants_of "$pid")
    kill -9 -"$pid" 2>/dev/null
    for relative in $family; do kill -9 "$relative" 2>/dev/null; done
  fi
  return 0
}

# Processes that left the group still have the run's name in their environment. Repeat until two rounds find none. -z,
# as each variable ends in a NUL byte: busybox searches only up to the first one otherwise.
kill_strays() { kill_by_environment "SSHGRID_RUN=$1/" "SSHGRID_BATCH=$1/"; } # RUN or BATCH

kill_by_environment() { # VARIABLE=VALUE...; status 1 when processes remain after many rounds
  empty=0
  rounds=0
  while [ "$empty" -lt 2 ] && [ "$rounds" -lt 200 ]; do
    rounds=$((rounds + 1))
    strays=$(grep -Fxlsz -e "$1" -e "${2-$1}" /proc/[0-9]*/environ 2>/dev/null)
    killed=0
    for stray in $strays; do
      stray=${stray#/proc/}
      stray=${stray%/environ}
      [ "$stray" = $$ ] && continue
      start_time_of "$stray" || continue
      # Kill the group of a leader as well: its members may have cleared their environment.
      kill -9 -"$stray" 2>/dev/null
      kill -9 "$stray" 2>/dev/null && killed=1
    done
    if [ "$killed" = 0 ]; then empty=$((empty + 1)); else empty=0; fi
  done
  [ "$empty" -ge 2 ]
}

# --- queries (the control channel) ----------------------------------------------------------------------------------------

# poll RUN...: print "gone RUN" for each run without a folder, "dead RUN" for each whose wrapper has ended, "record RUN
# ..." for each result that could not be made a link; then names, sizes and link targets of the files that matter, in
# one fork. In this order, as a wrapper writes its record before it ends: dead and without a record is really lost. rc
# is listed before the outputs for the same reason: with a record, the sizes are final.
poll() {
  cd "$W/runs" || return
  files=
  for run; do
    files="$files $run/rc $run/why $run/job.sh $run/pid $run/compiled $run/running $run/out $run/err $run/build.log"
    if [ ! -d "$run" ]; then
      echo "gone $run"
    elif [ ! -h "$run/rc" ]; then
      if link_target "$run/pid" && ! identity_alive "$target"; then echo "dead $run"; fi
      line=
      { read -r line <"$run/record"; } 2>/dev/null
      case $line in rc=*) echo "record $run $line" ;; esac
    fi
  done
  # shellcheck disable=SC2086,SC2012 # names are ours: grid-job.attempt/file
  LC_ALL=C ls -ln $files 2>/dev/null
  return 0
}

# read_piece FILE OFFSET COUNT: print bytes of a file below runs/.
read_piece() { tail -c "+$(($2 + 1))" "$W/runs/$1" | head -c "$3"; }

# poll_with_output RUN OFFSET COUNT: poll, a line "out", and bytes of stdout: all that most runs need, in one round
# trip.
poll_with_output() {
  poll "$1"
  echo out
  if [ ! -s "$W/runs/$1/out" ]; then return; fi
  if [ "$2" = 0 ]; then head -c "$3" "$W/runs/$1/out"; else read_piece "$1/out" "$2" "$3"; fi
}

# signal RUN NAME: send a signal to the program's group. Prints "sent" or "none".
signal() {
  case $1 in */*) signal_task "${1%/*}" "${1#*/}" "$2"; return ;; esac
  cd "$W/runs/$1" 2>/dev/null || { echo none; return; }
  case $2 in INT | TERM | KILL | HUP | QUIT) ln -s signal why 2>/dev/null ;; esac
  if [ "$2" = KILL ]; then
    kill_stage
    echo sent
  elif signal_stage "$2"; then
    echo sent
  else
    echo none
  fi
}

# clean RUN...: end all processes of these runs and remove their files. May be repeated. Prints "left RUN" for a run
# that cannot be removed.
clean() {
  for run; do
    dir=$W/runs/$run
    [ -d "$dir" ] || continue
    cd "$dir" || continue
    # The wrapper first: it would start the next stage, or write into the folder while it is removed.
    if link_target pid && identity_alive "$target"; then
      kill -9 -"$pid" 2>/dev/null
    fi
    kill_stage
    # Processes that the program left behind stay only if that was requested and the program ended by itself.
    if grep -qx KEEP_CHILDREN=1 job.sh 2>/dev/null; then
      if [ ! -h rc ] || [ -h why ]; then kill_strays "$run"; fi
    else
      if [ ! -h rc ] || [ "$ISOLATION" != pidns ]; then has_killed_strays || kill_strays "$run"; fi
      [ ! -d lent ] || return_lent_objects "$run"
    fi
    cd "$W" || return
    rm -rf "$dir" "$W"/builds/.*."$run" 2>/dev/null || {
      chmod -R u+rwx "$dir" "$W"/builds/.*."$run"
      rm -rf "$dir" "$W"/builds/.*."$run"
    } 2>/dev/null
    [ ! -e "$dir" ] || echo "left $run"
  done
}

# renew_lease RUN UNTIL: extend the lease of a run to this uptime.
renew_lease() {
  cd "$W/runs/$1" 2>/dev/null || return
  echo "$2" >lease.new && mv -f lease.new lease
}

# runs_of GRID: print the run folders of a grid.
runs_of() {
  cd "$W/runs" || return
  for run in "$1"-*; do [ -d "$run" ] && echo "$run"; done
  return 0
}

# claim RUN: make the run's folder, so that its start is refused: for a cancel that comes before the start. Prints
# "claimed", "already" or "unfit".
claim() {
  if mkdir "$W/runs/$1" 2>/dev/null; then
    ln -s refused "$W/runs/$1/why"
    echo claimed
  elif [ -d "$W/runs/$1" ]; then
    echo already
  else
    echo unfit
  fi
}

# block_start RUN: its folder exists and no wrapper has started; from now on none can.
block_start() { ln -s "pid=0,start=0,boot=none" "$W/runs/$1/pid" 2>/dev/null; }

# missing_objects SHA...: print those that do not exist here.
missing_objects() {
  for sha; do [ -f "$W/objects/$sha" ] || echo "$sha"; done
}

# size_of FILE: set $size to its bytes; busybox's wc reads the whole file.
size_of() {
  size=$(stat -c %s "$1" 2>/dev/null) || size=$(wc -c <"$1") || return
  size=$((size))
}

# sha256_of FILE: set $sum to its SHA-256, by OpenSSL where it exists, as some sha256sum take five times as long; status
# 1 when no tool works.
sha256_of() {
  sum=$(openssl dgst -sha256 -r <"$1" 2>/dev/null) || sum=$(sha256sum <"$1" 2>/dev/null) || return 1
  sum=${sum%% *}
}

# store_object PART SHA SIZE: turn an uploaded file into an object when its size and digest are right.
store_object() {
  part=$W/objects/$1
  size_of "$part" 2>/dev/null || { echo "lost"; return; }
  [ "$size" = "$3" ] || { rm -f "$part"; echo "short $size"; return; }
  if sha256_of "$part"; then
    [ "$sum" = "$2" ] || { rm -f "$part"; echo "corrupt"; return; }
  fi
  # After a power cut, a name without its bytes would be an empty program, which ends with success.
  sync "$part" 2>/dev/null
  mv -f "$part" "$W/objects/$2" && echo kept
}

# --- large uploads: each on a channel of its own, which is its standard input ------------------------------------------

BLOCK_BYTES=4194304 # an interrupted upload continues at a multiple of this
IDLE_SECONDS=3      # without a byte: the writer of this part has lost its connection

# receive_object SIZE NONCE: receive the object $RUN. Prints the nonce and "at N", reads the bytes from N to the end
# from standard input, and prints "kept" or why it was not. Bytes of an interrupted upload stay beside the objects as
# SHA.part, and the next upload of the object continues there; the digest of the whole decides. Bytes are written at
# their place, so a second writer of the same part does no harm. The link SHA.by names the writer; SHA.part.whole exists
# while a complete part is checked.
receive_object() {
  object=$W/objects/$RUN
  partial=$object.part
  whole=$1
  at=0
  if [ -f "$object" ]; then
    printf '\n%s at %s\n' "$2" "$whole"
    cat >/dev/null
    echo kept
    return
  fi
  claim_part || partial=$object.$$.part
  rm -f "$partial.whole"
  # The object is lent to a run: when the run has not changed it, nothing needs to be sent.
  [ -e "$partial" ] || ! link_target "$object.lent" || [ ! -f "$target" ] || cp "$target" "$partial" 2>/dev/null
  if size_of "$partial" 2>/dev/null && [ "$size" -le "$whole" ] && sha256_of /dev/null; then
    at=$((size / BLOCK_BYTES * BLOCK_BYTES))
    [ "$size" -lt "$whole" ] || at=$whole
  else
    rm -f "$partial"
  fi
  printf '\n%s at %s\n' "$2" "$at"
  sync_while_receiving </dev/null >/dev/null 2>&1 &
  bringing=$!
  if dd of="$partial" bs="$BLOCK_BYTES" seek="$((at / BLOCK_BYTES))" conv=notrunc 2>/dev/null; then
    printf '' >"$partial.whole"
    verdict=$(finish_part)
    rm -f "$partial.whole"
  else
    rm -f "$partial"
    verdict="in part"
  fi
  kill "$bringing" 2>/dev/null
  ! link_target "$object.by" || [ "$target" != "$mine" ] || rm -f "$object.by"
  echo "$verdict"
}

# Sync the part while it is received and checked: a single sync at the end would take long. Ends with the receiver.
sync_while_receiving() { while sleep 1 && [ -f "$partial" ] && identity_alive "$mine"; do sync "$partial"; done; }

# Turn a complete part into the object; a partial one stays.
finish_part() {
  size_of "$partial"
  if [ "$size" -lt "$whole" ]; then
    echo "short $size"
    return
  fi
  if [ "$size" -gt "$whole" ] || { sha256_of "$partial" && [ "$sum" != "$RUN" ]; }; then
    # Nor is it copied again from the run that has it.
    rm -f "$partial" "$object.lent"
    echo corrupt
    return
  fi
  sync "$partial" 2>/dev/null
  mv -f "$partial" "$object" && echo kept
}

# Become the writer of the part; status 1 when another upload of this object is active. An upload without progress is
# ended: its connection was lost.
claim_part() {
  start_time_of $$ || started=0
  mine="pid=$$,start=$started,boot=$BOOT"
  looks=0
  until record_identity $$ "$object.by"; do
    link_target "$object.by" || return 1
    if identity_alive "$target"; then
      writer=$pid
      size_of "$partial" 2>/dev/null || size=0
      before=$size
      sleep 1
      size_of "$partial" 2>/dev/null || size=0
      # It is still receiving, or checks the digest, which takes a while.
      if [ "$size" != "$before" ] || [ -e "$partial.whole" ]; then return 1; fi
      looks=$((looks + 1))
      [ "$looks" -ge "$IDLE_SECONDS" ] || continue
      for relative in $(descendants_of "$writer"); do kill -9 "$relative" 2>/dev/null; done
    fi
    rm -f "$object.by"
  done
}

# unpack_small_objects FOLDER SHA...: turn small files that came as one stream into objects when all digests are right.
unpack_small_objects() {
  crate=$W/objects/$1
  shift
  if [ ! -f "$crate/whole" ]; then
    verdict=short
  elif [ "$SHA256SUM" = 1 ] && ! (cd "$crate" && for sha; do echo "$sha  $sha"; done | sha256sum -c >/dev/null 2>&1); then
    verdict=corrupt
  else
    verdict=lost
    rm -f "$crate/whole"
    sync "$crate"/* 2>/dev/null
    mv -f "$crate"/* "$W/objects/" && verdict=kept
  fi
  rm -rf "$crate"
  echo "$verdict"
}

# remove_part PART: remove a failed upload.
remove_part() { rm -f "$W/objects/$1"; }

# has_build KEY: print "yes" when this build exists; from now on it counts as used.
has_build() {
  printf '' >"$W/builds/$1.used"
  [ ! -d "$W/builds/$1" ] || echo yes
}

# pack_build KEY KILOBYTES: print a build as one archive: a line "size N", then N bytes; or a line "gone", "large" or
# "unfit".
pack_build() {
  [ -d "$W/builds/$1" ] || { echo gone; return; }
  size=$(du -sk "$W/builds/$1" 2>/dev/null)
  [ "${size%%[!0-9]*}" -le "$2" ] 2>/dev/null || { echo large; return; }
  part=$W/objects/pack.$$
  if (cd "$W/builds/$1" && tar cf "$part" .) 2>/dev/null && size=$(wc -c <"$part"); then
    echo "size $((size))"
    cat "$part"
  else
    echo unfit
  fi
  rm -f "$part"
} 2>/dev/null

# unpack_build KEY SHA: the object is another node's build: unpack it in a hidden folder, sync it and rename it, as if
# it had been made here. Prints "unpacked" or a reason; removes the object in either case.
unpack_build() {
  aside=$W/builds/.$1.$$
  why=
  printf '' >"$W/builds/$1.used"
  if [ ! -d "$W/builds/$1" ]; then
    rm -rf "$aside"
    if { mkdir "$aside" && (cd "$aside" && tar xof "$W/objects/$2"); } 2>/dev/null; then
      if lacks_library "$aside"; then
        why="a program in it needs a library that is not here"
      else
        find "$aside" -type f -exec sync {} + 2>/dev/null
        [ -d "$W/builds/$1" ] || mv "$aside" "$W/builds/$1" 2>/dev/null
        rm -rf "$W/builds/$1/.$1.$$"
      fi
    else
      why="it cannot be unpacked (disk full, or no tar)"
    fi
    rm -rf "$aside"
  fi
  rm -f "$W/objects/$2"
  if [ -d "$W/builds/$1" ]; then echo unpacked; else echo "${why:-it cannot be moved into place}"; fi
}

# lacks_library FOLDER: status 0 when the folder has a program that this machine's loader cannot load.
lacks_library() {
  command -v ldd >/dev/null 2>&1 || return 1
  for program in "$1"/*; do
    { [ -f "$program" ] && [ -x "$program" ]; } || continue
    case $(LC_ALL=C ldd "$program" 2>&1) in *'not found'* | *'Error loading'*) return 0 ;; esac
  done
  return 1
}

# record_check NAME: store the record of a toolchain check, which is standard input.
record_check() { cat >"$W/checks/.$1.$$" && mv -f "$W/checks/.$1.$$" "$W/checks/$1"; }

# sample_load: print a load sample a second while the connection lasts: its heartbeat.
sample_load() {
  while :; do
    if [ -r /proc/stat ]; then
      read -r up _ </proc/uptime
      read -r load _ </proc/loadavg
      read -r _ a b c d e f g h _ </proc/stat
      free=0
      while read -r key value _; do
        case $key in MemAvailable:) free=$value && break ;; esac
      done </proc/meminfo
      echo "$up $load $((a + b + c + f + g + h)) $((d + e)) $free"
    else
      load=$(uptime)
      load=${load##*average*: }
      load=${load%%[, ]*}
      echo "$(date +%s) $load 0 0 0"
    fi
    sleep 1
  done
}

# --- entry when run as a program --------------------------------------------------------------------------------------

case ${1-} in
  wrapper | converse | child | child_in_namespace | init | receive_object)
    LIB=$0
    verb=$1
    W=$2
    RUN=$3
    BOOT=$4
    shift 4
    case $verb in
      wrapper) wrapper "$RUN" ;;
      *) "$verb" "$@" ;;
    esac
    ;;
esac
