# shellcheck shell=sh
# The verbs that a node knows. Sourced by the long-lived shells of a connection, and run as `sh node.sh wrapper RUN` for
# the part of a run that must outlive every connection. Expects $W (working folder) and $BOOT (identity of this boot).
# POSIX only (dash, busybox, bash): no local, no arrays, no $'..'. Values arrive as positional parameters or files.
#
#   runs/<grid>-<job>.<attempt>/
#     job.sh    what to do: written by `start`, sourced here; functions layout, compile, program, and the limits
#     out err build.log         the program's output and error; what the compiler said
#     work/                     the program's current folder
#     pid       link "pid=N,start=T,boot=B": the wrapper's identity       child   the same for the program's group
#     running   exists once the program (not its build) has been started
#     why       link: who ended it before its time (wall, memory, output, processes, lease, signal), why it never began
#               (refused), or that the disk was full at its end (full)
#     rc        link "rc=N,...": present = finished; atomic, works on a full disk
#     record    256 bytes made at the start: the stage that has begun, and the result where no inode is left for rc
#
# A redirection that fails ends the whole shell when it stands at a special builtin (`: >file`): never write that here.

set -u
umask 077
PREPARE_ONLY=0
LANES=
counted_apart=0
page=

# The tasks of a batch are for its lanes (batch.sh); whoever else reads its job.sh passes over them.
task() { :; }

# --- clocks and identities ---------------------------------------------------------------------------------------------

# Whole seconds of the node's own uptime: wall clocks jump. The date is only for systems without /proc.
uptime_seconds() {
  if [ -r /proc/uptime ]; then
    read -r now _ </proc/uptime
    now=${now%%.*}
  else
    now=$(date +%s)
  fi
}

# Start time of process $1 in clock ticks, "" when there is none: pid and start time together are an identity.
start_time_of() {
  started=
  if [ -d /proc/self ]; then
    stat_line=
    # A program's name may hold a newline, and the kernel does not escape it.
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

# identity_alive pid=N,start=T,boot=B: is it that very process, of this boot?
identity_alive() {
  case $1 in *",boot=$BOOT") ;; *) return 1 ;; esac
  identity=${1%%,boot=*}
  pid=${identity#pid=}
  pid=${pid%%,*}
  start_time_of "$pid" && [ "$started" = "${identity##*start=}" ]
}

link_target() { # the target of link $1 in $target; readlink is everywhere, but not in POSIX
  [ -h "$1" ] && target=$(readlink "$1" 2>/dev/null) && [ -n "$target" ]
}

record_identity() { # record_identity PID FILE
  start_time_of "$1" || started=0
  ln -s "pid=$1,start=$started,boot=$BOOT" "$2" 2>/dev/null
}

# --- starting ----------------------------------------------------------------------------------------------------------

# start RUN NOT_AFTER BUILD NEEDED SHA...: standard input is job.sh. NEEDED: digests, with blanks between them, that must
# be here even when the build is ("-" = none); the SHA... are needed for the build alone. Answers one line:
#   late RUN        the node's uptime is past NOT_AFTER: the command waited in a dead link
#   missing RUN S.. these objects are not here
#   already RUN     this attempt was started, or cancelled, before
#   unfit RUN WHY   no space, read-only ...
#   claimed RUN     the wrapper is on its way
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
  # A mark of use, before the look: what is used is not swept away.
  printf '' >"$W/builds/$build.used"
  [ ! -d "$W/builds/$build" ] || set --
  nothing_lacks "$run" "$needed" "$@" || return
  dir=$W/runs/$run
  if ! mkdir "$dir" 2>/dev/null; then
    if [ -d "$dir" ]; then echo "already $run"; else echo "unfit $run cannot make a run folder in $W (disk full or read-only)"; fi
    return
  fi
  # A record of fixed size, made now: the last resort for the exit code when no inode is left at the end.
  if mkdir "$dir/work" && cat >"$dir/job.sh" && printf '%255s\n' '' >"$dir/record" &&
    printf '' >"$dir/out" && printf '' >"$dir/err" && printf '' >"$dir/wrapper.log"; then
    echo "claimed $run"
    [ "$PREPARE_ONLY" = 1 ] || launch "$run"
  else
    rm -rf "$dir"
    echo "unfit $run no space left in $W"
  fi
} 2>/dev/null

# nothing_lacks RUN NEEDED SHA...: these objects are here. Else the answer "missing".
nothing_lacks() {
  for_run=$1
  needed=$2
  shift 2
  # shellcheck disable=SC2086 # a word each
  [ "$needed" = - ] || set -- "$@" $needed
  absent=
  for sha; do [ -f "$W/objects/$sha" ] || absent="$absent $sha"; done
  [ -z "$absent" ] && return
  echo "missing $for_run$absent"
  return 1
}

# prepare ...: as start, but leaves the launching to `converse`
prepare() {
  PREPARE_ONLY=1
  start "$@"
  PREPARE_ONLY=0
}

# A background job of a shell ignores INT for ever after, and so would the program: `setsid -f` forks without that. Where
# it is not known, the second of two setsid is a group leader already, and therefore forks.
# The run's name is in the environment from the first moment: whoever cleans finds every process by it.
launch() {
  if [ "$SETSID_FORK" = 1 ]; then fork=-f; else fork=setsid; fi
  SSHGRID_RUN="$1/" setsid "$fork" /bin/sh "$LIB" wrapper "$W" "$1" "$BOOT" </dev/null >/dev/null 2>"$W/runs/$1/wrapper.log"
}

# --- the wrapper: outlives the connection, the master and itself being looked at -----------------------------------------

# Tells the connection that started this run, if it is still there (descriptor 9). Only a hint: rc is the truth.
bell() { { echo "$1" >&9; } 2>/dev/null; }

wrapper() {
  RUN=$1
  DIR=$W/runs/$RUN
  cd "$DIR" || exit 70
  # Caught, not ignored: what is ignored here would stay ignored in the program.
  trap : HUP INT QUIT TERM PIPE USR1 USR2
  SSHGRID_RUN=$RUN/
  export SSHGRID_RUN
  # The link is the claim: one wrapper a run, and none once a master has given up waiting for it.
  if ! record_identity $$ pid; then
    uptime_seconds
    began=$now
    [ -h pid ] || record 74 stage=layout
    exit 70
  fi
  # shellcheck source=/dev/null
  . ./job.sh
  run_task
  bell "end $RUN"
  # Whatever is left of a run without a pid namespace, then this process's own group: the watchdog and its sleep.
  [ "$ISOLATION" = pidns ] || [ "$KEEP_CHILDREN" = 1 ] || has_swept || kill_strays "$RUN"
  [ "$KEEP_CHILDREN" = 1 ] || kill -9 0
}

# In the folder of a run that is over: whether it is a batch, which looks for strays before it writes its record. It does not
# look for those of a compiler.
has_swept() { [ -e ledger ] && [ ! -e compiled ] && [ ! -e strays ] && link_target rc && case $target in *,stage=run,*) ;; *) false ;; esac; }

# converse NONCE: the wrapper in the foreground of a channel, whose streams are the program's.
converse() {
  stty -echo 2>/dev/null
  printf '\n%s\n' "$1"
  [ -t 2 ] || printf '\n%s\n' "$1" >&2
  stty echo 2>/dev/null
  wrapper "$RUN" 3>&2 2>"$W/runs/$RUN/wrapper.log"
}

# One run: build if nobody has, run, record. Of a batch: all its tasks (batch.sh).
run_task() {
  # shellcheck disable=SC2153 # BUILD comes from job.sh
  BUILD_DIR=$W/builds/$BUILD
  uptime_seconds
  began=$now
  step=layout
  if [ -n "$LANES" ]; then
    # shellcheck source=sshgrid/remote/batch.sh
    . "${LIB%/*}/batch${LIB##*/node}"
    lay_out_tasks || { record 74 "stage=$step"; return; }
  fi
  builds=0
  if [ ! -d "$BUILD_DIR" ]; then
    builds=1
    build || { record "$?" "stage=$step"; return; }
  fi
  if [ "$DATA" = 1 ] && ! lay_data; then
    ln -s data why
    record 74 stage=layout
    return
  fi
  step=start
  printf '' >running
  # Others wait for a build to end; without one nobody waits for the beginning.
  [ "$builds" = 0 ] || bell "running $RUN"
  if [ -n "$LANES" ]; then
    work_through
    step=run
  else
    guarded program "$WALL_LIMIT"
  fi
  record "$?" "stage=$step"
}

# Built aside, on disk, and renamed in: a half-built folder is never seen. Two who build the same: the first rename counts.
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
  # Who comes second between the look and the mv lands inside the first one's folder.
  rm -rf "$aside" "$BUILD_DIR/.$BUILD.$RUN"
  [ -d "$BUILD_DIR" ] || return 74
}

# place SHA PATH MODE: one source file into the build folder (the current folder)
place() {
  case $2 in */*) mkdir -p "./${2%/*}" || return ;; esac
  cp "$W/objects/$1" "./$2" && chmod "$3" "./$2"
}

# The files that travel with the run, into its folder: copies, as a program may write into what it was given.
lay_data() (
  umask 022
  cd work && data
)

# put SHA PATH MODE: one of them. Where the file system can, the copy shares its blocks until somebody writes.
put() {
  case $2 in */*) mkdir -p "./${2%/*}" || return ;; esac
  object=$W/objects/$1
  if [ ! -f "$object" ]; then
    copy_unproved "$1" "./$2"
  elif [ "$LEND" = 1 ] && size_of "$object" && [ "$size" -ge "$LENT_BYTES" ] && only_ours "$1"; then
    lend "$1" "$2"
  else
    { cp --reflink=auto "$object" "./$2" 2>/dev/null || cp "$object" "./$2"; } && touch -c "$object"
  fi && chmod "$3" "./$2"
}

LENT_BYTES=33554432 # a copy of less is made soon enough

# only_ours SHA: this run reads it as nothing but a file of its folder, and no other run that is not over names it.
only_ours() {
  [ "$1" != "$INPUT" ] || return
  # shellcheck disable=SC2013 # a path each: where there were blanks in $W, it would not be lent
  for script in $(grep -lF "$1" "$W"/runs/*/job*.sh 2>/dev/null); do
    of=${script%/*}
    [ "$of" = "$DIR" ] || [ -h "$of/rc" ] || return
  done
}

# lend SHA PATH: the object itself goes into the run's folder, which saves the copy; `take_back` brings it home. SHA.lent
# tells others where it is meanwhile.
lend() {
  { [ -d ../lent ] || mkdir ../lent; } && inode_of "$object" && ln -s "$inode/$2" "../lent/$1" || return
  ln -sf "$DIR/work/$2" "$object.lent"
  mv "$object" "./$2"
}

# copy_unproved SHA FILE: an object that was lent out since the start of this run has seen it. Its digest says whether it still is one.
copy_unproved() {
  for place in "$(readlink "$object.lent")" "$object.part"; do
    if [ -f "$place" ] && cp "$place" "$2" && sum_of "$2" && [ "$sum" = "$1" ]; then return 0; fi
  done 2>/dev/null
  return 1
}

inode_of() { # FILE: in $inode, and in $links how many names the file has
  # shellcheck disable=SC2012 # ls -i is the one portable way to see both
  line=$(ls -lnid "$1" 2>/dev/null) || return
  # shellcheck disable=SC2086 # split into fields on purpose
  set -- $line
  inode=$1
  links=$3
}

# take_back RUN: what was lent to it lies beside the objects again. The program may have written into it: until a digest says
# otherwise it is as good as an upload that was cut. Not what has another name, or is another file now.
take_back() {
  for lent in "$W/runs/$1/lent"/*; do
    link_target "$lent" || continue
    object=$W/objects/${lent##*/}
    file=$W/runs/$1/work/${target#*/}
    rm -f "$object.lent"
    if [ -f "$object" ] || [ -h "$file" ] || ! inode_of "$file"; then continue; fi
    if [ "$inode:$links" = "${target%%/*}:1" ]; then chmod 600 "$file" && touch "$file" && mv -f "$file" "$object.part"; fi
  done
}

# unpack SHA: many small ones. Their times are those of now, and they belong to this account.
unpack() { tar -x -m -o -f "$W/objects/$1" && touch -c "$W/objects/$1"; }

# guarded STAGE HUNDREDTHS: the stage in a session of its own, with a watchdog beside it; status as of a shell. Sets step
# to "build" or "run" when the stage has really begun.
# It runs in the foreground: a background job would have INT ignored.
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

# Whoever is left in the group of this link when its leader has gone.
kill_group() {
  link_target "$1" || return 0
  leader=${target#pid=}
  kill -9 -"${leader%%,*}" 2>/dev/null
}

# child STAGE: first process of the stage's session; its pid is the group that signals go to.
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
      # In a user namespace of its own the system counts the run's processes apart from all others of the account.
      if [ -n "$PROCESS_LIMIT" ] && [ "$1" = program ] && unshare --user --map-current-user true 2>/dev/null; then
        exec unshare --user --map-current-user /bin/sh "$LIB" apart "$W" "$RUN" "$BOOT" "$1"
      fi
      backstop "$1"
      stage "$1"
      ;;
  esac
}

apart() {
  cd "$W/runs/$RUN" || exit 70
  # shellcheck source=/dev/null
  . ./job.sh
  counted_apart=1
  backstop "$1"
  stage "$1"
}

# The watchdog ends a run with too many processes; this keeps it, as far as the system can, from outrunning the watchdog.
# Root has no such limit. Before Linux 5.14, and without a namespace, all that the account runs is counted, in other
# containers too: so a limit is tried first, by starting something.
backstop() {
  { [ -n "$PROCESS_LIMIT" ] && [ "$1" = program ]; } || return 0
  most=$((2 * PROCESS_LIMIT + 50))
  if [ "$counted_apart" = 0 ] || ! bearable "$most"; then
    there=$(cat /proc/[0-9]*/status 2>/dev/null | awk -v uid="$(id -u)" '
      $1 == "Uid:" { mine = $2 == uid }
      $1 == "Threads:" && mine { total += $2 }
      END { print total + 0 }')
    most=$((most + there))
    bearable "$most" || return 0
  fi
  limit_processes "$most"
}

# shellcheck disable=SC3045 # bash has -u, busybox and dash -p
bearable() {
  { prlimit --nproc="$1:$1" /bin/sh -c '(:); :' || (ulimit -u "$1" && (:)) || (ulimit -p "$1" && (:)); } 2>/dev/null
}

# shellcheck disable=SC3045
limit_processes() {
  { prlimit --pid $$ --nproc="$1:$1" || ulimit -u "$1" || ulimit -p "$1"; } 2>/dev/null
  return 0
}

# First process of a pid namespace: caught signals reach the program through the group; when this exits, all is gone.
init() {
  trap : HUP INT QUIT TERM USR1 USR2
  cd "$W/runs/$RUN" || exit 70
  # shellcheck source=/dev/null
  . ./job.sh
  [ -z "$USER_NAMESPACE" ] || counted_apart=1
  backstop "$1"
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
      # Room for its words, taken beforehand: a compiler that fills the disk could not say so. The reader strips the blanks.
      printf '%8192s' '' >"$1/build.log"
      { begin_as build "$1/record" && environment && compile; } </dev/null 1<>"$1/build.log" 2>&1
      ;;
    program)
      tools_present || { ln -s toolchain why; exit 127; }
      cd work || exit 70
      input=/dev/null
      [ -z "$INPUT" ] || input=$W/objects/$INPUT
      # From here on the user's variables may have any name, ours too: what is still needed is in the parameters.
      set -- "$W/builds/$BUILD" "$input" "$INTERACTIVE"
      umask 022
      environment
      if [ "$3" = 0 ]; then
        { begin_as program ../record && program "$1"; } <"$2" >>../out 2>>../err
      else
        { begin_as program ../record && program "$1"; } 2>&3 3>&-
      fi
      exit 70
      ;;
  esac
}

# From here on a failure is the program's, or the compiler's. Written into bytes that are there already.
begin_as() { printf '%-9s' "$1" 1<>"$2"; }

# The result, in one step that cannot be half done.
record() {
  { { times; } >cpu; } 2>/dev/null
  # No room for these few bytes: what the program printed may be cut short, and few programs notice.
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

# Ends the stage when a limit is passed: TERM, five seconds, KILL. Notes why before it acts. Looks ten times in the first
# second (short limits), then once a second, or five times where processes are counted: they can double in a moment.
watchdog() { # STAGE HUNDREDTHS
  trap '' INT TERM
  looks=0
  deadline=
  fraction=
  # What a compiler uses is not what the user has limited.
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
    look || return
  done
  end_stage wall
}

# $hundredths of a second of uptime.
uptime_hundredths() {
  if [ -r /proc/uptime ]; then
    read -r now _ </proc/uptime
    fraction=${now#*.}
    hundredths=$((${now%%.*} * 100 + ${fraction#0}))
  else
    hundredths=$(($(date +%s) * 100))
  fi
}

# A lease is an absolute time of this node's uptime: however late a renewal comes, it cannot mean more than it says.
lease_ended() {
  until=$LEASE
  [ -r lease ] && read -r until <lease
  uptime_seconds
  [ "$now" -ge "$until" ]
}

# Lease, output and memory of the run; status 1 when the stage has been ended.
look() {
  if [ -n "$LEASE" ] && lease_ended; then
    ln -sf lease why 2>/dev/null
    kill_stage
    return 1
  fi
  if [ -n "$OUTPUT_LIMIT" ] && [ -e out ] && printed_too_much out err; then
    end_stage output
    return 1
  fi
  [ -n "$MEMORY_LIMIT$PROCESS_LIMIT" ] || [ "$((looks % 5))" = 1 ] || return 0
  link_target child || return 0
  child_pid=${target#pid=}
  weigh "${child_pid%%,*}" 0 peak
  if [ -n "$MEMORY_LIMIT" ] && [ "$memory" -gt "$MEMORY_LIMIT" ]; then
    ln -sf memory why 2>/dev/null
    kill_stage
    return 1
  fi
  # Those of ours that lead to the program are not counted against it.
  if [ -n "$PROCESS_LIMIT" ] && [ "$processes" -gt "$((PROCESS_LIMIT + 3))" ]; then
    ln -sf processes why 2>/dev/null
    kill_stage
    return 1
  fi
}

# printed_too_much OUT ERR: these two files together are above the limit.
printed_too_much() {
  # shellcheck disable=SC2046,SC2012 # two lines of nine fields
  set -- $(LC_ALL=C ls -ln "$1" "$2" 2>/dev/null)
  [ "$((${5:-0} + ${14:-0}))" -gt "$OUTPUT_LIMIT" ]
}

# weigh PID OURS FILE: how many $processes are below PID, without its first OURS generations, and how many bytes of $memory
# they hold; the most that was ever seen is kept in FILE.
weigh() {
  # Not before the first look: most runs are over by then.
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

end_stage() { # WHY; a signal that the program outlived is no reason any more
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

# tree PID: "pid resident-bytes generation" of the process and all its descendants. A process's name may hold spaces, brackets and
# newlines. Numbers by %.0f: mawk prints large ones as 1.2e+10 otherwise.
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

members() { tree "$1" | while read -r member _; do echo "$member"; done; }

# Only `kill -NAME -PGID` works in every shell; `kill -s NAME -- -PGID` does not.
signal_stage() { # SIGNAL, in the run's folder
  link_target child && identity_alive "$target" || return 1
  leader=$pid
  # unshare blocks INT and TERM alone; any other signal would end it, and the whole run with it.
  case $ISOLATION$1 in
    pidnsINT | pidnsTERM | session*) kill -"$1" -"$leader" 2>/dev/null && return ;;
  esac
  # An interactive run has no group of its own.
  missed=1
  for relative in $(members "$leader"); do
    [ "$(cat "/proc/$relative/comm" 2>/dev/null)" = unshare ] || { kill -"$1" "$relative" 2>/dev/null && missed=0; }
  done
  return "$missed"
}

kill_stage() {
  if link_target child && identity_alive "$target"; then
    family=$(members "$pid")
    kill -9 -"$pid" 2>/dev/null
    for relative in $family; do kill -9 "$relative" 2>/dev/null; done
  fi
  return 0
}

# Processes that left the group still carry the run's name in their environment. Look until two rounds find nothing.
# -z, as each variable ends in a NUL byte, behind which busybox does not look otherwise.
kill_strays() { kill_carrying "SSHGRID_RUN=$1/" "SSHGRID_BATCH=$1/"; } # RUN, also that of a batch

kill_carrying() { # VARIABLE=VALUE...; status 1 when they went on for too long
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
      # A leader takes its group along: some of it may have thrown the environment away.
      kill -9 -"$stray" 2>/dev/null
      kill -9 "$stray" 2>/dev/null && killed=1
    done
    if [ "$killed" = 0 ]; then empty=$((empty + 1)); else empty=0; fi
  done
  [ "$empty" -ge 2 ]
}

# --- looking (the control channel) ----------------------------------------------------------------------------------------

# poll RUN...: "gone RUN" for each that has no folder, "dead RUN" for each whose wrapper is gone, "record RUN ..." for each
# result that could not be made a link; then names, sizes and link targets of everything worth knowing, in one fork. In
# this order, as a wrapper writes its record before it goes: dead and no record is really lost. rc is listed before the
# outputs for the same reason: with a record, the sizes are final.
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

# piece FILE OFFSET COUNT: bytes of a file below runs/
piece() { tail -c "+$(($2 + 1))" "$W/runs/$1" | head -c "$3"; }

# glance RUN OFFSET COUNT: poll, a line "out", and bytes of its stdout: all that most runs need, in one round trip
glance() {
  poll "$1"
  echo out
  if [ ! -s "$W/runs/$1/out" ]; then return; fi
  if [ "$2" = 0 ]; then head -c "$3" "$W/runs/$1/out"; else piece "$1/out" "$2" "$3"; fi
}

# signal RUN NAME: to the program's group. Answers "sent" or "none".
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

# clean RUN...: nothing of these runs is left, process or file. Asking twice is fine.
clean() {
  for run; do
    dir=$W/runs/$run
    [ -d "$dir" ] || continue
    cd "$dir" || continue
    # The wrapper first: it would go on to the next stage, or write into what is being removed.
    if link_target pid && identity_alive "$target"; then
      kill -9 -"$pid" 2>/dev/null
    fi
    kill_stage
    # What the program has left running stays only when that was asked for and it ended by itself.
    if grep -qx KEEP_CHILDREN=1 job.sh 2>/dev/null; then
      if [ ! -h rc ] || [ -h why ]; then kill_strays "$run"; fi
    else
      if [ ! -h rc ] || [ "$ISOLATION" != pidns ]; then has_swept || kill_strays "$run"; fi
      [ ! -d lent ] || take_back "$run"
    fi
    cd "$W" || return
    rm -rf "$dir" "$W"/builds/.*."$run" 2>/dev/null || {
      chmod -R u+rwx "$dir" "$W"/builds/.*."$run"
      rm -rf "$dir" "$W"/builds/.*."$run"
    } 2>/dev/null
    [ ! -e "$dir" ] || echo "left $run"
  done
}

# renew RUN UNTIL: the lease of a run ends not before this uptime
renew() {
  cd "$W/runs/$1" 2>/dev/null || return
  echo "$2" >lease.new && mv -f lease.new lease
}

# runs_of GRID: the run folders of a grid
runs_of() {
  cd "$W/runs" || return
  for run in "$1"-*; do [ -d "$run" ] && echo "$run"; done
  return 0
}

# claim RUN: a cancel that comes before the start makes the same folder, so the start is refused. Answers "claimed",
# "already" or "unfit".
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

# forestall RUN: its folder is there and no wrapper has come; none shall come any more.
forestall() { ln -s "pid=0,start=0,boot=none" "$W/runs/$1/pid" 2>/dev/null; }

# have SHA...: prints those that are not here
have() {
  for sha; do [ -f "$W/objects/$sha" ] || echo "$sha"; done
}

# size_of FILE: its bytes in $size; busybox's wc reads the whole file
size_of() {
  size=$(stat -c %s "$1" 2>/dev/null) || size=$(wc -c <"$1") || return
  size=$((size))
}

# sum_of FILE: its SHA-256 in $sum, by OpenSSL where it is there, as some sha256sum take five times as long; status 1 when
# nothing here can tell.
sum_of() {
  sum=$(openssl dgst -sha256 -r <"$1" 2>/dev/null) || sum=$(sha256sum <"$1" 2>/dev/null) || return 1
  sum=${sum%% *}
}

# keep PART SHA SIZE: an uploaded part becomes an object when it is what it claims to be
keep() {
  part=$W/objects/$1
  size_of "$part" 2>/dev/null || { echo "lost"; return; }
  [ "$size" = "$3" ] || { rm -f "$part"; echo "short $size"; return; }
  if sum_of "$part"; then
    [ "$sum" = "$2" ] || { rm -f "$part"; echo "corrupt"; return; }
  fi
  # A name that outlives a power cut without its bytes would be an empty program, which ends well.
  sync "$part" 2>/dev/null
  mv -f "$part" "$W/objects/$2" && echo kept
}

# --- large uploads: each on a channel of its own, which is its standard input ------------------------------------------

STEP_BYTES=4194304 # what was not written whole is sent again in steps of so many
IDLE_LOOKS=3       # seconds without a byte: whoever writes this part is cut off, and does not know it yet

# receive SIZE NONCE: the object $RUN. Answers "at N" behind the nonce, takes the bytes from there to the end, and answers
# "kept", or why not. What came before a cut stays beside the objects as SHA.part, and the next upload of the same object
# goes on with it: that it is what it should be is told by the digest of the whole. Bytes are written at their place, so
# whoever else still writes the same part does no harm. SHA.by is a link that says who does; SHA.part.whole is there while
# a part that has come whole is proved.
receive() {
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
  # Here it is, lent to a run: if that has left it as it was, nothing needs to be sent.
  [ -e "$partial" ] || ! link_target "$object.lent" || [ ! -f "$target" ] || cp "$target" "$partial" 2>/dev/null
  if size_of "$partial" 2>/dev/null && [ "$size" -le "$whole" ] && sum_of /dev/null; then
    at=$((size / STEP_BYTES * STEP_BYTES))
    [ "$size" -lt "$whole" ] || at=$whole
  else
    rm -f "$partial"
  fi
  printf '\n%s at %s\n' "$2" "$at"
  bring_to_disk </dev/null >/dev/null 2>&1 &
  bringing=$!
  if dd of="$partial" bs="$STEP_BYTES" seek="$((at / STEP_BYTES))" conv=notrunc 2>/dev/null; then
    printf '' >"$partial.whole"
    verdict=$(settle_part)
    rm -f "$partial.whole"
  else
    rm -f "$partial"
    verdict="in part"
  fi
  kill "$bringing" 2>/dev/null
  ! link_target "$object.by" || [ "$target" != "$mine" ] || rm -f "$object.by"
  echo "$verdict"
}

# Bit by bit while it comes and is proved: all at the end would be waited for. Not longer than whoever receives it lives.
bring_to_disk() { while sleep 1 && [ -f "$partial" ] && identity_alive "$mine"; do sync "$partial"; done; }

# What has come becomes the object; of a cut one the part stays.
settle_part() {
  size_of "$partial"
  if [ "$size" -lt "$whole" ]; then
    echo "short $size"
    return
  fi
  if [ "$size" -gt "$whole" ] || { sum_of "$partial" && [ "$sum" != "$RUN" ]; }; then
    # Nor is it taken again from the run that has it.
    rm -f "$partial" "$object.lent"
    echo corrupt
    return
  fi
  sync "$partial" 2>/dev/null
  mv -f "$partial" "$object" && echo kept
}

# Status 1 when another upload of this object is under way. One that stands still is ended: its connection was cut.
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
      # It still comes, or has come and is proved, which takes a while.
      if [ "$size" != "$before" ] || [ -e "$partial.whole" ]; then return 1; fi
      looks=$((looks + 1))
      [ "$looks" -ge "$IDLE_LOOKS" ] || continue
      for relative in $(members "$writer"); do kill -9 "$relative" 2>/dev/null; done
    fi
    rm -f "$object.by"
  done
}

# unpack_crate CRATE SHA...: small files that came as one stream become objects when each is what it claims to be
unpack_crate() {
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

# drop PART: an upload that failed
drop() { rm -f "$W/objects/$1"; }

# built KEY: "yes" when this build is here; from now on it is in use.
built() {
  printf '' >"$W/builds/$1.used"
  [ ! -d "$W/builds/$1" ] || echo yes
}

# pack_build KEY KILOBYTES: a build as one archive: a line "size N", then so many bytes. Else a line "gone", "large" or "unfit".
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

# unpack_build KEY SHA: the object is another node's build, and becomes ours as if it had been made here: aside, on disk, renamed
# in. Answers "unpacked", or why not; the object goes in either case.
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

# Is there a program in the folder $1 that this machine's loader could not load?
lacks_library() {
  command -v ldd >/dev/null 2>&1 || return 1
  for program in "$1"/*; do
    { [ -f "$program" ] && [ -x "$program" ]; } || continue
    case $(LC_ALL=C ldd "$program" 2>&1) in *'not found'* | *'Error loading'*) return 0 ;; esac
  done
  return 1
}

# prove NAME: standard input is the proof's text
prove() { cat >"$W/proofs/.$1.$$" && mv -f "$W/proofs/.$1.$$" "$W/proofs/$1"; }

# A load sample a second, for as long as somebody reads: the heartbeat of the connection.
sampler() {
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
  wrapper | converse | child | apart | init | receive)
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
