# shellcheck shell=sh
# Remove objects and builds from the working folder $W: those that were not used for a number of days, then the least
# recently used until the rest fits. Fed to a shell on standard input, after `set --` has put the days and the size in
# kilobytes into the positional parameters. Keeps what a run folder names, and what was used within the hour: a start
# marks its build before it looks for it. What a later run lacks is sent and built again.
# POSIX but for find's -mindepth, -maxdepth and -mmin, which GNU, busybox and the BSDs have.

days=$1
max_kilobytes=$2

# Print every digest in the job files of existing runs.
digests_in_runs() { cat "$W"/runs/*/job.sh 2>/dev/null | tr -cs '0-9a-f' '\n' | awk 'length($0) == 64' | sort -u; }

kilobytes() { du -sk "$W/objects" "$W/builds" 2>/dev/null | { total=0; while read -r size _; do total=$((total + size)); done; echo "$total"; }; }

# use_mark_of ENTRY: print the file whose time is that of the entry's last use.
use_mark_of() {
  case $1 in
    "$W"/builds/*) if [ -f "$1.used" ]; then echo "$1.used"; else echo "$1"; fi ;;
    *) echo "$1" ;;
  esac
}

is_unused_for() { [ -n "$(find "$(use_mark_of "$1")" -prune -mmin "+$2" 2>/dev/null)" ]; }

evict() {
  name=${1##*/}
  case $named in *"$name"*) return ;; esac
  is_unused_for "$1" "$2" || return
  rm -rf "$1" "$1.used"
  evicted=$((evicted + 1))
}

entries() { find "$W/objects" "$W/builds" -mindepth 1 -maxdepth 1 ! -name '*.used' 2>/dev/null; }

by_last_use() { entries | while IFS= read -r entry; do use_mark_of "$entry"; done | xargs ls -1tdr 2>/dev/null; }

evicted=0
list=$W/.prune.$$
named=$(digests_in_runs)
entries >"$list"
while IFS= read -r entry; do evict "$entry" "$((days * 1440))"; done <"$list"
# Interrupted uploads: objects have no dot in their names. The writer of a part (.by) stays while the part grows.
find "$W/objects" -mindepth 1 -maxdepth 1 -name '*.*' ! -name '*.by' -mmin +60 2>/dev/null >"$list"
while IFS= read -r part; do rm -rf "$part"; done <"$list"
find "$W/objects" -mindepth 1 -maxdepth 1 -name '*.by' -mmin +60 2>/dev/null >"$list"
while IFS= read -r writer; do [ -e "${writer%.by}.part" ] || rm -f "$writer"; done <"$list"
# Marks of builds that no longer exist.
find "$W/builds" -mindepth 1 -maxdepth 1 -name '*.used' -mmin +60 2>/dev/null >"$list"
while IFS= read -r mark; do [ -d "${mark%.used}" ] || rm -f "$mark"; done <"$list"
if [ "$(kilobytes)" -gt "$max_kilobytes" ]; then
  by_last_use >"$list"
  while IFS= read -r mark; do
    evict "${mark%.used}" 60
    [ "$(kilobytes)" -gt "$max_kilobytes" ] || break
  done <"$list"
fi
rm -f "$list"
echo "evicted $evicted"
