# shellcheck shell=sh
# Frees what no run needs any more in the working folder $W: objects and builds that were not used for long, then the
# least recently used until the rest fits. Fed to a shell on standard input, after `set --` has put the age in days and
# the size in kilobytes into the positional parameters. Never touches what a run folder names, or what was used within the
# hour: a start marks its build before it looks for it. What is missed later is sent and built again.
# POSIX but for find's -mindepth, -maxdepth and -mmin, which GNU, busybox and the BSDs have.

days=$1
most_kilobytes=$2

# Everything that looks like a digest in the job files of runs that are there.
named_by_runs() { cat "$W"/runs/*/job.sh 2>/dev/null | tr -cs '0-9a-f' '\n' | awk 'length($0) == 64' | sort -u; }

kilobytes() { du -sk "$W/objects" "$W/builds" 2>/dev/null | { total=0; while read -r size _; do total=$((total + size)); done; echo "$total"; }; }

# The file whose time says when an entry was used last.
mark_of() {
  case $1 in
    "$W"/builds/*) if [ -f "$1.used" ]; then echo "$1.used"; else echo "$1"; fi ;;
    *) echo "$1" ;;
  esac
}

resting() { [ -n "$(find "$(mark_of "$1")" -prune -mmin "+$2" 2>/dev/null)" ]; }

free() {
  name=${1##*/}
  case $named in *"$name"*) return ;; esac
  resting "$1" "$2" || return
  rm -rf "$1" "$1.used"
  freed=$((freed + 1))
}

entries() { find "$W/objects" "$W/builds" -mindepth 1 -maxdepth 1 ! -name '*.used' 2>/dev/null; }

by_last_use() { entries | while IFS= read -r entry; do mark_of "$entry"; done | xargs ls -1tdr 2>/dev/null; }

freed=0
list=$W/.sweep.$$
named=$(named_by_runs)
entries >"$list"
while IFS= read -r entry; do free "$entry" "$((days * 1440))"; done <"$list"
# Uploads that were cut: no object has a dot in its name. Whose a part is (.by) stays with a part that still grows.
find "$W/objects" -mindepth 1 -maxdepth 1 -name '*.*' ! -name '*.by' -mmin +60 2>/dev/null >"$list"
while IFS= read -r part; do rm -rf "$part"; done <"$list"
find "$W/objects" -mindepth 1 -maxdepth 1 -name '*.by' -mmin +60 2>/dev/null >"$list"
while IFS= read -r writer; do [ -e "${writer%.by}.part" ] || rm -f "$writer"; done <"$list"
# Marks of builds that are gone.
find "$W/builds" -mindepth 1 -maxdepth 1 -name '*.used' -mmin +60 2>/dev/null >"$list"
while IFS= read -r mark; do [ -d "${mark%.used}" ] || rm -f "$mark"; done <"$list"
if [ "$(kilobytes)" -gt "$most_kilobytes" ]; then
  by_last_use >"$list"
  while IFS= read -r mark; do
    free "${mark%.used}" 60
    [ "$(kilobytes)" -gt "$most_kilobytes" ] || break
  done <"$list"
fi
rm -f "$list"
echo "freed $freed"
