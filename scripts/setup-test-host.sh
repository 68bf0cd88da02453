#!/bin/sh
# Installs the Debian packages that the tests, the benchmarks and the chaos run need and that are missing, as root or
# with sudo. Exits with 1, and prints the command to type, when it cannot become root or when a package is still missing.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH

# a command and the package that contains it
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

can_become_root() {
  if [ "$(id -u)" = 0 ]; then return 0; fi
  command -v sudo >/dev/null || return 1
  # Without a terminal, sudo must not prompt.
  if [ -t 0 ]; then sudo -v; else sudo -n true 2>/dev/null; fi
}

retried() {
  for pause in 5 20 none; do
    if "$@"; then return 0; fi
    if [ "$pause" != none ]; then
      say "'$*' failed; retrying in $pause s"
      sleep "$pause"
    fi
  done
  return 1
}

# The tests start their own SSH servers: the installation of openssh-server must not start one on port 22.
policy=/usr/sbin/policy-rc.d
install_packages() {
  made_policy=no
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 0755 "$policy"
    made_policy=yes
  fi
  installed=yes
  retried as_root apt-get -q update || installed=no
  # shellcheck disable=SC2086 # package names are words
  retried as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends $1 </dev/null ||
    installed=no
  if [ "$made_policy" = yes ]; then as_root rm -f "$policy"; fi
  [ "$installed" = yes ]
}

packages=$(missing_packages)
if [ -z "$packages" ]; then
  say "nothing is missing"
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  say "missing, as Debian package names: $packages"
  say "this machine has no apt-get: install them with its package manager"
  exit 1
fi
if ! can_become_root; then
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
say "all packages are installed"
