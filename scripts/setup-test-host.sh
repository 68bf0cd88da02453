#!/bin/sh
# Installs what the tests, the benchmarks and the torture run need from Debian's packages: only what is missing, as root or with sudo.
# Ends with 1 and says what to type when it may not, or when something is still missing.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# a command and the package that brings it
wanted='
sshd openssh-server
ssh openssh-client
ip iproute2
nft nftables
unshare util-linux
ps procps
openssl openssl
bwrap bubblewrap
busybox busybox
dropbear dropbear-bin
dropbearconvert dropbear-bin
plink putty-tools
puttygen putty-tools
csh csh
dash dash
fish fish
mksh mksh
tmux tmux
shellcheck shellcheck
git git
make make
man man-db
gcc gcc
g++ g++
perl perl
parallel parallel
rsync rsync
javac default-jdk-headless
node nodejs
/usr/bin/python3 python3
'

has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }

missing_packages() {
  printf '%s' "$wanted" | while read -r tool package; do
    if [ -n "$tool" ] && ! command -v "$tool" >/dev/null; then printf '%s ' "$package"; fi
  done
  if ! has_venv; then printf 'python3-venv '; fi
}

say() { printf 'setup-test-host: %s\n' "$1" >&2; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

may_be_root() {
  if [ "$(id -u)" = 0 ]; then return 0; fi
  command -v sudo >/dev/null || return 1
  # Without a terminal sudo must not ask.
  if [ -t 0 ]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

retried() {
  for pause in 5 20 none; do
    if "$@"; then return 0; fi
    if [ "$pause" != none ]; then
      say "'$*' failed, again in $pause s"
      sleep "$pause"
    fi
  done
  return 1
}

# The tests start SSH servers of their own; installing one must not open this machine's port 22.
policy=/usr/sbin/policy-rc.d
install_packages() {
  made_policy=no
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
    made_policy=yes
  fi
  done_well=yes
  retried as_root apt-get -q update || done_well=no
  # shellcheck disable=SC2086 # package names are words
  retried as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $1 </dev/null ||
    done_well=no
  if [ "$made_policy" = yes ]; then as_root rm -f "$policy"; fi
  [ "$done_well" = yes ]
}

packages=$(missing_packages)
if [ -z "$packages" ]; then
  say "nothing is missing"
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  say "missing here, named as Debian packages: $packages"
  say "this machine has no apt-get: install them its own way"
  exit 1
fi
if ! may_be_root; then
  say "missing: $packages"
  say "type: sudo apt-get update && sudo apt-get install $packages"
  exit 1
fi
say "installing $packages"
case " $packages" in
  *" openssh-server "*) say "the SSH server is not started now; 'systemctl disable ssh' keeps it off after a reboot, too" ;;
esac
install_packages "$packages" || true
packages=$(missing_packages)
if [ -n "$packages" ]; then
  say "still missing: $packages"
  exit 1
fi
say "everything is there"
