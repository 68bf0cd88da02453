# shellcheck shell=sh
# Add one public key to the account's authorized_keys, at most once. Fed to `exec /bin/sh` on standard input, after `set
# --` has put the key's line into $1. Prints `added`, `there` or `unfit WHY`, and `loose FOLDER` for a home folder that
# sshd does not trust. Other lines of the file stay unchanged; modes become those that sshd requires.

umask 077
LC_ALL=C
export LC_ALL

key=$1
blob=${key#* }
blob=${blob%% *}
folder=$HOME/.ssh
file=$folder/authorized_keys

holds_key() {
  [ -f "$file" ] || return 1
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in '#'*) ;; *"$blob"*) return 0 ;; esac
  done <"$file"
  return 1
}

append_key() {
  # Complete a last line that has no line break: it would swallow the key.
  if [ -s "$file" ] && [ -n "$(tail -c 1 "$file")" ]; then
    printf '\n' >>"$file" || return
  fi
  printf '%s\n' "$key" >>"$file"
}

put_key() {
  [ -d "$folder" ] || mkdir "$folder" || return
  chmod u+rwx,go= "$folder" || return
  word=there
  holds_key || { append_key && holds_key && word=added; } || return
  chmod u+rw,go= "$file"
}

if put_key 2>/dev/null; then
  # With SELinux, sshd reads only files with its label.
  if command -v restorecon >/dev/null 2>&1; then restorecon "$folder" "$file" 2>/dev/null; fi
  echo "$word"
else
  echo "unfit cannot write in $folder"
fi
# shellcheck disable=SC2012 # ls is the one portable way to read a mode
case $(ls -ldn "$HOME") in
  ?????w* | ????????w*) echo "loose $HOME" ;;
esac
