#!/usr/bin/env bash
# Machines without a container engine: a switch, a launching machine and N hosts with sshd.
#
#   nethosts.sh up FOLDER VENV N        make them; FOLDER holds their homes, keys and logs
#   nethosts.sh exec FOLDER I COMMAND   run a command on machine I; 0 is the launching one
#   nethosts.sh down FOLDER             end every process on them and remove them
#
# Each machine has a network, pid, mount, uts and ipc namespace, and a /tmp, /dev/shm and home of its
# own. So `ray stop`, which ends every Ray process that it can see, sees those of its machine alone.
# Machine I has the address 10.77.0.(10+I); nothing else is reachable from there. VENV lies in each
# home as ~/mixray, as if it had been installed. The hosts' login key is machine 0's.
#
# Needs root, iproute2, util-linux and openssh-server.
set -euo pipefail

command=${1:?} folder=${2:?}
switch=mixray-lan

up() {
  local venv=$1 count=$2 i
  mkdir -p /run/sshd "$folder/0/home/.ssh"
  ssh-keygen -q -t ed25519 -N '' -f "$folder/0/home/.ssh/id_ed25519"
  ip netns add $switch
  ip -n $switch link add switch type bridge
  ip -n $switch link set switch up
  for i in $(seq 0 "$count"); do
    start "$i" "$venv"
  done
  for i in $(seq 1 "$count"); do
    for _ in $(seq 100); do
      nsenter -t "$(cat "$folder/0/pid")" -n bash -c "exec 3<>/dev/tcp/10.77.0.$((10 + i))/22" \
        2>/dev/null && break
      sleep 0.1
    done
  done
}

start() {
  local i=$1 venv=$2 machine=$folder/$1 name=mixray-$1 address=10.77.0.$((10 + $1))
  mkdir -p "$machine/home/.ssh" "$machine/tmp"
  chmod 700 "$machine/home/.ssh"
  chmod 1777 "$machine/tmp"
  cp "$folder/0/home/.ssh/id_ed25519.pub" "$machine/home/.ssh/authorized_keys"
  ln -s "$venv" "$machine/home/mixray"
  # As on Debian and Ubuntu: a login shell reads .profile, and that reads .bashrc.
  echo '. ~/.bashrc' > "$machine/home/.profile"
  touch "$machine/home/.bashrc"
  ssh-keygen -q -t ed25519 -N '' -f "$machine/hostkey"

  ip netns add "$name"
  ip -n $switch link add "port$i" type veth peer name eth0 netns "$name"
  ip -n $switch link set "port$i" master switch up
  ip -n "$name" addr add "$address/24" dev eth0
  ip -n "$name" link set eth0 up
  ip -n "$name" link set lo up

  ip netns exec "$name" unshare --mount --pid --uts --ipc --fork --kill-child --mount-proc \
    bash "$0" init "$folder" "$i" "$venv" > "$machine/log" 2>&1 < /dev/null &
  # `ip netns exec` becomes `unshare`, whose child is the machine's first process.
  local outer=$! first=
  until [ -n "$first" ]; do
    sleep 0.02
    read -r first < "/proc/$outer/task/$outer/children" || true # no newline at its end
  done
  echo "$first" > "$machine/pid"
}

init() { # the first process of a machine; its end is the end of all others there
  local i=$1 venv=$2 machine=$folder/$1
  mount --make-rprivate /
  hostname "host$i"
  # A venv or a checkout under /tmp stays visible there.
  for kept in "$venv" "$PWD"; do
    if [[ $kept == /tmp/* ]]; then
      mkdir -p "$machine$kept"
      mount --bind "$kept" "$machine$kept"
    fi
  done
  # Another home for root, not another /root: a venv may lead there.
  sed "s#^root:\([^:]*\):0:0:\([^:]*\):[^:]*:#root:\1:0:0:\2:$machine/home:#" /etc/passwd \
    > "$machine/passwd"
  mount --bind "$machine/passwd" /etc/passwd
  mount --rbind "$machine/tmp" /tmp
  mount -t tmpfs -o size=1g tmpfs /dev/shm
  if [ "$i" = 0 ]; then
    exec sleep infinity
  fi
  exec /usr/sbin/sshd -D -e -f /dev/null -h "$machine/hostkey" -o PidFile=none -o UsePAM=no \
    -o StrictModes=no -o PermitRootLogin=prohibit-password
}

down() {
  local machine
  for machine in "$folder"/[0-9]*; do
    kill -9 "$(cat "$machine/pid")" 2>/dev/null || true
    ip netns del "mixray-${machine##*/}" 2>/dev/null || true
  done
  ip netns del $switch 2>/dev/null || true
}

case $command in
  up) up "$3" "$4" ;;
  init) init "$3" "$4" ;;
  exec)
    machine=$folder/$3
    shift 3
    exec nsenter -t "$(cat "$machine/pid")" --net --mount --pid --uts --ipc --wd="$PWD" \
      env -i HOME="$machine/home" PATH="$machine/home/mixray/bin:$PATH" TERM=dumb "$@"
    ;;
  down) down ;;
esac
