#!/bin/bash
# A move alpha -> beta by the drivers, a step at a time: redis in a container of podman, its data and its memory by zfs
# send, its volumes at other paths over there, one client's connection open all the time. Runs in alpha; needs the
# binary of flocker-engine's tests in both guests under the name in $1, and redis-client.py in /tmp.
export PATH=/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin
T=$1
S() { date +%s.%N; }; E() { awk -v a=$1 -v b=$(date +%s.%N) -v n="$2" 'BEGIN{printf "%-55s %.2f s\n",n,b-a}'; }
B="ssh -o ControlMaster=auto -o ControlPath=/tmp/cm-mv -o ControlPersist=600 beta"; $B true
step() { echo "$T --ignored --exact driver::real::containers::step_$1 --nocapture"; }
here() { $(step "$1") >/tmp/step.out 2>&1 || { cat /tmp/step.out; exit 1; }; grep ' ms$\|^\[' /tmp/step.out; }
there() { $B "PATH=\$PATH:/usr/local/bin; $2 $(step "$1")" >/tmp/step.out 2>&1 || { cat /tmp/step.out; exit 1; }; grep ' ms$\|^\[' /tmp/step.out; }
podman rm -fa -t 0 >/dev/null; zfs destroy -r tank/mv 2>/dev/null; zfs destroy -r tank/mvstate 2>/dev/null
$B 'podman rm -fa -t 0 >/dev/null; zfs destroy -r tank/there 2>/dev/null; zfs create tank/there; ip addr del 10.77.0.10/24 dev eth1 2>/dev/null; true'
zfs create tank/mv; zfs create tank/mvstate
ip addr add 10.77.0.10/24 dev eth1 2>/dev/null
here begin
for i in $(seq 50); do redis-cli ping 2>/dev/null | grep -q PONG && break; sleep 0.2; done
$B 'cat >/tmp/description' </tank/mvstate/description
sed 's/settimeout(60)/settimeout(300)/' /tmp/redis-client.py | $B 'cat >/tmp/client.py' 
there prepare
$B 'python3 /tmp/client.py 10.77.0.10 6379 100' >/tmp/client.out 2>&1 & sleep 2
for v in mv mvstate; do zfs snapshot tank/$v@m1; zfs send tank/$v@m1 | $B "zfs recv -o canmount=noauto tank/there/$v"; done
t0=$(S)
t=$(S); here leave; E $t "leave"
ip addr del 10.77.0.10/24 dev eth1
t=$(S); for v in mv mvstate; do zfs snapshot tank/$v@m2; zfs send -i @m1 tank/$v@m2 | $B "zfs recv -F tank/there/$v; zfs mount tank/there/$v 2>/dev/null; true"; done; E $t "final deltas"
t=$(S); there arrive "ip addr add 10.77.0.10/24 dev eth1;"; E $t "arrive"
E $t0 "whole"
wait; cat /tmp/client.out; $B 'podman ps; redis-cli get ctr; podman inspect traveller --format "{{.HostConfig.Binds}}"; podman rm -fa -t 0 >/dev/null; ip addr del 10.77.0.10/24 dev eth1'
podman rm -fa -t 0 >/dev/null; zfs destroy -r tank/mv; zfs destroy -r tank/mvstate
