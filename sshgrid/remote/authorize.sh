# shellcheck shell=sh
# One public key into the account's authorized_keys, at most once. Fed to `exec /bin/sh` on standard input, after
# `set --` has put the key's line into $1. Answers `added`, `there` or `unfit WHY`, and `loose FOLDER` for a home that sshd
# will not trust. Every other line of the file stays as it is; modes become what sshd asks for.

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
  # A last line without its end must not swallow ours.
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
  # Where SELinux is in force, sshd reads only what is labelled as its own.
  if command -v restorecon >/dev/null 2>&1; then restorecon "$folder" "$file" 2>/dev/null; fi
  echo "$word"
else
  echo "unfit cannot write in $folder"
fi
# shellcheck disable=SC2012 # ls is the one portable way to see a mode
case $(ls -ldn "$HOME") in
  ?????w* | ????????w*) echo "loose $HOME" ;;
esac
