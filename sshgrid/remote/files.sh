# shellcheck shell=sh
# List a run's folder. Fed to a shell on standard input after `set --` has put the folder and expressions for find into
# the positional parameters. One line each: "f SIZE ./NAME" for a file or a link to a file inside, "d ./NAME" for a link
# to a folder, "o ./NAME" for a link out of the folder or to nowhere, "s ./NAME" for other kinds of files, and "n ./"
# when there are names with a line break. Links are not followed any further. Sets $answer to "listed", or to "gone"
# without a folder.

# shellcheck disable=SC2034 # read by the caller
answer=gone
if cd "$1" 2>/dev/null; then
  # shellcheck disable=SC2034
  answer=listed
  here=$(pwd -P)
  shift
  broken='*
*'
  [ -z "$(find . \( "$@" \) ! -type d -path "$broken" 2>/dev/null | head -n 1)" ] || echo 'n ./'
  # GNU and busybox have -c, the BSDs -f.
  if stat -c %s . >/dev/null 2>&1; then
    size_of() { stat -L -c %s "$1"; }
    find . \( "$@" \) -type f ! -path "$broken" -exec stat -c 'f %s %n' {} + 2>/dev/null
  else
    size_of() { stat -L -f %z "$1"; }
    find . \( "$@" \) -type f ! -path "$broken" -exec stat -f 'f %z %N' {} + 2>/dev/null
  fi
  find . \( "$@" \) -type l ! -path "$broken" 2>/dev/null | head -n 1000 | while IFS= read -r name; do
    case $(readlink -f "$name" 2>/dev/null) in
      "$here"/*)
        if [ -f "$name" ]; then printf 'f %s %s\n' "$(size_of "$name")" "$name"; else printf 'd %s\n' "$name"; fi
        ;;
      *) printf 'o %s\n' "$name" ;;
    esac
  done
  find . \( "$@" \) ! -type f ! -type d ! -type l ! -path "$broken" 2>/dev/null | head -n 1000 | sed 's/^/s /'
fi
