# shellcheck shell=sh
# First contact: print the facts of this machine, in one round trip. Fed to `exec /bin/sh` on standard input, after `set
# --` has put the template of the working folder, the name of the function library and the names of tools into the
# positional parameters. Sets $W (working folder), $LIB (path of the library, not yet written) and $BOOT for the
# commands that follow in this shell.
# POSIX only. A fork takes about a millisecond on a small machine, so builtins are used wherever possible.

umask 077
LC_ALL=C
export LC_ALL

template=$1
library=$2
shift 2

uid=$(id -u)
case $template in
  *'{uid}'*) W=${template%%'{uid}'*}$uid${template#*'{uid}'} ;;
  *) W=$template ;;
esac
case $W in
  '~'/*) W=$HOME/${W#??} ;;
esac
# A slash at the end would hide that the folder is a link.
while :; do
  case $W in ?*/) W=${W%/} ;; *) break ;; esac
done

fact() { printf '%s %s\n' "$1" "$2"; }
unfit() { fact unfit "$1"; }

# --- the working folder: another local user may have put a link or a folder of theirs in its place -------------

check_working_folder() {
  case $W in /*) ;; *) unfit "the working folder $W is not an absolute path"; return 1 ;; esac
  mkdir -p "$W" 2>/dev/null
  [ -d "$W" ] || { unfit "cannot make the working folder $W"; return 1; }
  [ ! -L "$W" ] || { unfit "the working folder $W is a link"; return 1; }
  # shellcheck disable=SC2012 # ls -n is the one portable way to read owner and mode
  owner_and_mode=$(ls -ldn "$W" | { read -r mode _ owner _; echo "$owner $mode"; })
  case $owner_and_mode in
    "$uid drwx------"*) ;;
    "$uid "*) chmod 700 "$W" || { unfit "cannot make the working folder $W private"; return 1; } ;;
    *) unfit "the working folder $W belongs to another user"; return 1 ;;
  esac
  # The name of this folder in earlier versions.
  if [ -d "$W/proofs" ] && [ ! -d "$W/checks" ]; then mv "$W/proofs" "$W/checks" 2>/dev/null; fi
  for folder in bin objects builds runs checks; do
    [ -d "$W/$folder" ] || make_folder "$W/$folder" || [ -d "$W/$folder" ] || { unfit "cannot write in the working folder $W"; return 1; }
  done
  # Running a small program detects a full disk, a read-only one, and one mounted noexec, where every run would end with
  # 126. printf, because a redirection that fails at `:` would end this shell.
  probe=$W/bin/.probe.$$
  problem="cannot write in the working folder $W (disk full or read-only)"
  if { printf '#!/bin/sh\n' >"$probe"; } 2>/dev/null; then
    problem="programs cannot run in the working folder $W (mounted noexec, or without links): set workdir"
    if { chmod 700 "$probe" && "$probe" && ln -s probe "$probe.link"; } 2>/dev/null; then problem=; fi
  fi
  rm -f "$probe" "$probe.link" 2>/dev/null
  [ -z "$problem" ] || { unfit "$problem"; return 1; }
}

make_folder() {
  mkdir "$1" || return
  # Runs are independent of each other: let ext4 spread them. Without a journal it skips recently freed inodes one by
  # one, and beside the files of past runs a new file costs ten times as much.
  case $1 in */runs) chattr +T "$1" || : ;; esac
} 2>/dev/null

# --- facts -------------------------------------------------------------------------------------------------------------

boot_identity() {
  boot_id=$system
  [ -r /proc/sys/kernel/random/boot_id ] && read -r boot_id </proc/sys/kernel/random/boot_id
  # Containers of one kernel share its boot id; the pid namespace and the start time of its first process distinguish
  # them.
  first=
  [ -r /proc/1/stat ] && read -r first </proc/1/stat
  # shellcheck disable=SC2086 # split into fields on purpose
  set -- ${first##*') '}
  # No brackets: the identity passes through login shells that would read them as a pattern.
  namespace=$(readlink /proc/self/ns/pid 2>/dev/null)
  namespace=${namespace#*'['}
  echo "$boot_id/${namespace%']'}/${20:-0}"
}

count_cores() {
  getconf _NPROCESSORS_ONLN 2>/dev/null || nproc 2>/dev/null || grep -c '^processor' /proc/cpuinfo 2>/dev/null || echo 1
}

memory_bytes() {
  while read -r key value _; do
    case $key in MemTotal:) echo "$((value * 1024))"; return ;; esac
  done </proc/meminfo 2>/dev/null
  sysctl -n hw.memsize 2>/dev/null || echo 0
}

c_library() {
  getconf GNU_LIBC_VERSION 2>/dev/null && return
  for loader in /lib/ld-musl-*; do [ -e "$loader" ] && { echo musl; return; }; done
  echo unknown
}

# Print the strongest isolation that works here, found by trying it: processes of a run cannot leave a pid namespace.
isolation() {
  if [ "$uid" = 0 ]; then user_namespace=; else user_namespace='--user --map-current-user'; fi
  # shellcheck disable=SC2086 # two options or none
  if unshare $user_namespace --pid --fork --kill-child=KILL --mount-proc true 2>/dev/null; then
    echo "pidns"
  else
    echo session
  fi
}

helper() { # NAME COMMAND...: report NAME when the command works
  name=$1
  shift
  "$@" >/dev/null 2>&1 </dev/null && fact helper "$name"
}

# A shell that is not a login shell has a short PATH; toolchains are often in other folders.
search_path() {
  PATH=${PATH:-/usr/bin:/bin}
  for folder in /usr/local/bin /usr/bin /bin /usr/sbin /sbin /usr/local/go/bin /snap/bin /opt/homebrew/bin \
    "$HOME/.cargo/bin" "$HOME/.local/bin" "$HOME/.pyenv/shims" "$HOME"/.sdkman/candidates/*/current/bin; do
    case :$PATH: in *:"$folder":*) continue ;; esac
    [ -d "$folder" ] && PATH=$PATH:$folder
  done
  export PATH
}

find_tools() { # NAME...: the first executable of each name, without a fork
  found=
  saved_ifs=$IFS
  for name; do
    IFS=:
    for folder in $PATH; do
      case $folder in /*) ;; *) continue ;; esac
      if [ ! -f "$folder/$name" ] || [ ! -x "$folder/$name" ]; then continue; fi
      fact tool "$name $folder/$name"
      found="$found:$folder/$name"
      break
    done
    IFS=$saved_ifs
  done
  # Size, time and inode of each: a toolchain check is valid while they are unchanged.
  IFS=:
  # shellcheck disable=SC2086,SC2012 # split at the colons; ls because stat is not POSIX
  [ -z "$found" ] || ls -lLin ${found#:} 2>/dev/null | while IFS= read -r line; do fact file "$line"; done
  IFS=$saved_ifs
}

system=$(uname -s)
fact system "$system"
fact architecture "$(uname -m)"
fact uid "$uid"
fact workdir "$W"
search_path
fact path "$PATH"
if check_working_folder; then
  # shellcheck disable=SC2034 # for the commands that follow in this shell
  LIB=$W/bin/$library
  fact cores "$(count_cores)"
  fact memory "$(memory_bytes)"
  gpus=0
  for device in /dev/nvidia[0-9] /dev/nvidia[0-9][0-9]; do [ ! -c "$device" ] || gpus=$((gpus + 1)); done
  fact gpus "$gpus"
  fact libc "$(c_library)"
  BOOT=$(boot_identity)
  fact boot "$BOOT"
  up=0
  [ -r /proc/uptime ] && read -r up _ </proc/uptime
  fact uptime "$up"
  fact isolation "$(isolation)"
  helper setsid setsid true
  helper setsid-fork setsid -f true
  helper awk awk 'BEGIN { exit 0 }'
  helper sha256sum sha256sum /dev/null
  helper tar command -v tar
  helper fractional-sleep sleep 0.01
  for locale in /usr/lib/locale/C.utf8 /usr/lib/locale/C.UTF-8; do [ -d "$locale" ] && fact helper C.UTF-8; done
  find_tools "$@"
  for record in "$W"/checks/*; do
    [ -f "$record" ] && while IFS= read -r line; do fact check "$line"; done <"$record"
  done
fi
