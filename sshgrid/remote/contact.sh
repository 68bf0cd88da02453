# shellcheck shell=sh
# First contact: what this machine is, in one round trip. Fed to `exec /bin/sh` on standard input, after `set --` has put
# the working folder's template, the name of the verb library and the tool names into the positional parameters.
# Leaves $W (working folder), $LIB (path of the library, not yet written) and $BOOT behind for the shell that goes on.
# POSIX only; one fork is about a millisecond on a small machine, so everything that can be a builtin is one.

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

# --- a working folder that is ours alone: another local user may have put a link or a folder of theirs in our way ------

private_folder() {
  case $W in /*) ;; *) unfit "the working folder $W is not an absolute path"; return 1 ;; esac
  mkdir -p "$W" 2>/dev/null
  [ -d "$W" ] || { unfit "cannot make the working folder $W"; return 1; }
  [ ! -L "$W" ] || { unfit "the working folder $W is a link"; return 1; }
  # shellcheck disable=SC2012 # ls -n is the one portable way to see owner and mode
  owner_and_mode=$(ls -ldn "$W" | { read -r mode _ owner _; echo "$owner $mode"; })
  case $owner_and_mode in
    "$uid drwx------"*) ;;
    "$uid "*) chmod 700 "$W" || { unfit "cannot close the working folder $W to others"; return 1; } ;;
    *) unfit "the working folder $W belongs to another user"; return 1 ;;
  esac
  for folder in bin objects builds runs proofs; do
    [ -d "$W/$folder" ] || make_folder "$W/$folder" || [ -d "$W/$folder" ] || { unfit "cannot write in the working folder $W"; return 1; }
  done
  # A program, small as it is, tells a full disk, a read-only one, and one mounted noexec, where all would end with 126.
  # printf, because a redirection that fails at `:` would end this shell.
  trial=$W/bin/.trial.$$
  trouble="cannot write in the working folder $W (disk full or read-only)"
  if { printf '#!/bin/sh\n' >"$trial"; } 2>/dev/null; then
    trouble="programs cannot run in the working folder $W (mounted noexec, or without links): set workdir"
    if { chmod 700 "$trial" && "$trial" && ln -s trial "$trial.link"; } 2>/dev/null; then trouble=; fi
  fi
  rm -f "$trial" "$trial.link" 2>/dev/null
  [ -z "$trouble" ] || { unfit "$trouble"; return 1; }
}

make_folder() {
  mkdir "$1" || return
  # Runs have nothing to do with each other: ext4 may spread them. Where it has no journal it passes over the inodes that
  # were freed in the last minutes one by one, and side by side with the files of past runs a new one costs ten times as much.
  case $1 in */runs) chattr +T "$1" || : ;; esac
} 2>/dev/null

# --- what it is --------------------------------------------------------------------------------------------------------

boot_identity() {
  boot_id=$system
  [ -r /proc/sys/kernel/random/boot_id ] && read -r boot_id </proc/sys/kernel/random/boot_id
  # Containers of one kernel share its boot id; the pid namespace and the start of its first process tell them apart.
  first=
  [ -r /proc/1/stat ] && read -r first </proc/1/stat
  # shellcheck disable=SC2086 # split into fields on purpose
  set -- ${first##*') '}
  # No brackets: the identity travels through login shells that take them for a pattern.
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

# The strongest isolation that really works here, found by running it: in a pid namespace nothing of a run can escape.
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

# A shell that was not started by a login sees a bare PATH; toolchains often live elsewhere.
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
  # Size, time and inode of each: a proof of yesterday counts while they are the same.
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
if private_folder; then
  # shellcheck disable=SC2034 # for the shell that goes on
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
  for proof in "$W"/proofs/*; do
    [ -f "$proof" ] && while IFS= read -r line; do fact proof "$line"; done <"$proof"
  done
fi
