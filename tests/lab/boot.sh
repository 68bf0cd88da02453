#!/usr/bin/env bash
# The init process of a lab host: mounts the files of the host, then reads commands from stdin. `server` starts the SSH
# server and prints `ok` and its pid; `hide` removes tools and prints `ok`. It ends when the lab closes stdin, and the
# kernel then kills all other processes of the host. It is written for bash because bash reaps orphans, as init must.
# usage: boot.sh openssh|dropbear NAME DIRECTORY UID [SSHD OPTION...]
# The folder `etc` beside DIRECTORY is the copy of /etc that the hosts of a lab share.
set -euo pipefail
kind=$1 name=$2 host=$3 uid=$4
shift 4

# Tools are removed from an overlay of the folder that only this host has; its upper directory is in /run.
hide_tools() {
  local folder tool upper
  for folder in /usr/bin /usr/local/bin; do
    upper=/run/lab$folder
    if [ ! -d "$upper" ]; then
      mkdir -p "$upper/new" "$upper/work"
      mount -t overlay -o "lowerdir=$folder,upperdir=$upper/new,workdir=$upper/work" overlay "$folder" || return 1
    fi
    while read -r tool; do
      rm -f "$folder/$tool"
    done <"$host/hidden"
  done
}

own_proc() { # over the root given, which may be the empty string
  mount -t proc proc "$1/proc"
  mount --bind "$host/proc/loadavg" "$1/proc/loadavg"
  mount --bind "$host/proc/stat" "$1/proc/stat"
  mount --bind "$host/proc/boot_id" "$1/proc/sys/kernel/random/boot_id"
}

home() { # a fresh home on the tmpfs at $1/home
  mkdir -p "$1/home/grid/.ssh"
  cp "$host/authorized_keys" "$1/home/grid/.ssh/authorized_keys"
  cp "$host/bashrc" "$1/home/grid/.bashrc"
  chmod 0700 "$1/home/grid/.ssh"
  chown -R "$uid:$uid" "$1/home/grid"
}

# Mounts the copy of /etc, and the files of the host over it. The kernel would detach a mount on a file of the machine's
# /etc as soon as a package installation renames another file over it.
own_etc() {
  local file
  mount --bind "${host%/*}/etc" /etc
  mount -o remount,bind,ro /etc
  for file in "$host"/etc/*; do
    mount --bind "$file" "/etc/${file##*/}"
  done
}

boot_openssh() {
  own_proc ""
  own_etc
  mount --bind "$host/disk" /var/tmp
  mount -t tmpfs -o mode=1777 tmpfs /tmp
  mount -t tmpfs -o mode=0755 tmpfs /home
  mount -t tmpfs -o mode=0700 tmpfs /root
  mount -t tmpfs -o mode=0755 tmpfs /run
  mkdir -p /run/sshd
  home ""
  if [ -s "$host/hidden" ]; then hide_tools; fi
}

boot_dropbear() {
  local root=$host/root
  mount --bind "$root" "$root"
  own_proc "$root"
  mount --rbind /dev "$root/dev"
  mount --bind "$host/etc" "$root/etc"
  mount --bind "$host/disk" "$root/var/tmp"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  mount -t tmpfs -o mode=0755 tmpfs "$root/home"
  home "$root"
  cp "$host/dropbear_key" "$root/etc/dropbear_key"
  cd "$root"
  pivot_root . mnt
  cd /
  /bin/busybox umount -l /mnt
}

server() {
  case $kind in
    openssh)
      /usr/sbin/sshd -D -e -f /dev/null -h "$host/host_key" -o UsePAM=no -o PidFile=none -o PasswordAuthentication=no \
        -o KbdInteractiveAuthentication=no -o "Subsystem=sftp internal-sftp" "$@" </dev/null >/dev/null &
      ;;
    dropbear) /sbin/dropbear -F -E -s -p 22 -r /etc/dropbear_key </dev/null >/dev/null & ;;
  esac
}

mount --make-rprivate /
hostname "$name"
"boot_$kind"
echo ok
while read -r word; do
  case $word in
    server)
      server "$@"
      echo "ok $!"
      ;;
    hide)
      hide_tools && echo ok
      ;;
  esac
done
