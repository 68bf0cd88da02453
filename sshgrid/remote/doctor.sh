# shellcheck shell=sh
# Print facts about settings of a node that cause failures without an error message; sshgrid/node/diagnosis.py says what
# they mean. Fed to `exec /bin/sh` on standard input, after `set --` has put the working folder into $1. It changes
# nothing.

LC_ALL=C
export LC_ALL
workdir=$1

fact() { printf '%s %s\n' "$1" "$2"; }

# Print the value of a setting; drop-in files first, as sshd reads them.
setting() { # NAME FILE...
  name=$1
  shift
  for file; do
    [ -r "$file" ] || continue
    while read -r key value _; do
      case $key in
        "$name" | "$name="*) ;;
        *) continue ;;
      esac
      case $key in *=*) value=${key#*=} ;; esac
      echo "$value"
      return
    done <"$file"
  done
}

clock() { fact clock "$(date +%s)"; }

sshd_limits() {
  sshd_settings=$(sshd -T 2>/dev/null)
  for name in MaxSessions MaxStartups; do
    small=$(echo "$name" | tr '[:upper:]' '[:lower:]')
    found=$(echo "$sshd_settings" | while read -r key value; do [ "$key" != "$small" ] || echo "$value"; done)
    [ -n "$found" ] || found=$(setting "$name" /etc/ssh/sshd_config.d/*.conf /etc/ssh/sshd_config)
    [ -z "$found" ] || fact "$small" "$found"
  done
}

logind() {
  [ -d /run/systemd/system ] || return
  kill_processes=$(busctl get-property org.freedesktop.login1 /org/freedesktop/login1 \
    org.freedesktop.login1.Manager KillUserProcesses 2>/dev/null)
  case $kill_processes in
    'b true') kill_processes=yes ;;
    'b false') kill_processes=no ;;
    *) kill_processes=$(setting KillUserProcesses /etc/systemd/logind.conf.d/*.conf /run/systemd/logind.conf.d/*.conf \
      /etc/systemd/logind.conf /usr/lib/systemd/logind.conf.d/*.conf) ;;
  esac
  fact killuserprocesses "${kill_processes:-no}"
  if [ -e "/var/lib/systemd/linger/$(id -un)" ]; then fact linger yes; else fact linger no; fi
}

space() { # FOLDER: print the free KiB and the free inodes
  free=$(df -Pk "$1" 2>/dev/null | { read -r _; read -r _ _ _ left _; echo "$left"; })
  files=$(df -Pi "$1" 2>/dev/null | { read -r _; read -r _ total _ left _; [ "${total:-0}" = 0 ] || echo "$left"; })
  fact space "${free:--} ${files:--} $1"
}

temporary_folder() {
  folder=${TMPDIR:-/tmp}
  probe=$folder/.sshgrid-$$
  # In a subshell: a redirection that fails may end the shell.
  if (umask 077 && printf x >"$probe") 2>/dev/null; then fact tmp "ok $folder"; else fact tmp "unfit $folder"; fi
  rm -f "$probe"
  space "$folder"
}

limits() {
  while read -r line; do
    case $line in
      'Max processes '* | 'Max file size '* | 'Max open files '*)
        name=${line%%  *}
        # shellcheck disable=SC2086 # split into fields on purpose
        set -- ${line#"$name"}
        fact limit "$1 $name"
        ;;
    esac
  done </proc/self/limits 2>/dev/null
  fact processes "$(ps -u "$(id -u)" 2>/dev/null | wc -l)"
}

# Print the PATH of a login shell; its start-up files may print, read and hang.
login_path() {
  fact path "$PATH"
  command -v timeout >/dev/null 2>&1 || return
  # shellcheck disable=SC2016 # for the shell that it starts
  timeout 5 "${SHELL:-/bin/sh}" -l -c 'printf "\nPATH-IS %s\n" "$PATH"' </dev/null 2>/dev/null |
    while read -r word value; do [ "$word" != PATH-IS ] || fact loginpath "$value"; done
}

isolation() {
  command -v unshare >/dev/null 2>&1 || { fact barrier 'unshare is not installed'; return; }
  if [ "$(id -u)" = 0 ]; then user=; else user='--user --map-current-user'; fi
  # shellcheck disable=SC2086 # two options or none
  words=$(unshare $user --pid --fork --kill-child=KILL --mount-proc true 2>&1 >/dev/null) && { fact pidns yes; return; }
  fact barrier "$words"
  for name in kernel/unprivileged_userns_clone user/max_user_namespaces kernel/apparmor_restrict_unprivileged_userns; do
    [ -r "/proc/sys/$name" ] && read -r value <"/proc/sys/$name" && fact sysctl "$value $name"
  done
}

clock
fact system "$(uname -sr)"
fact shell "${SHELL:-/bin/sh}"
sshd_limits
logind
space "$workdir"
temporary_folder
[ -r /proc/self/limits ] && limits
isolation
login_path
# shellcheck disable=SC2034 # read by the caller
answer=ok
