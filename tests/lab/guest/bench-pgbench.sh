#!/bin/bash
# What replication takes from a database: pgbench on a dataset, unprotected, with a bare snapshot each second, and replicated
# with an RPO of 1 s to beta, interleaved. Runs in alpha, where a node serves tank/flocker, paired with beta.
# usage: bench-pgbench.sh ROUNDS SECONDS
set -eu
export PATH=$PATH:/usr/sbin:$(echo /usr/lib/postgresql/*/bin) LC_ALL=C
rounds=${1:-5} seconds=${2:-20} set=tank/flocker/data/pg dir=/srv/flocker/data/pg
zfs create -p -o recordsize=8k "$set"; chown postgres "$dir"
as() { setpriv --reuid=postgres --regid=postgres --clear-groups "$@"; }
cd "$dir"
as initdb -D "$dir/db" -A trust >/dev/null
as pg_ctl -D "$dir/db" -o '-p 5499 -k /tmp -c shared_buffers=64MB -c listen_addresses=' -w -l /tmp/fpg.log start >/dev/null
trap 'as pg_ctl -D "$dir/db" -m fast stop >/dev/null 2>&1' EXIT
as pgbench -h /tmp -p 5499 -i -s 3 -q postgres >/dev/null 2>&1
flocker-repl protect data/pg --to beta --rpo 1s >/dev/null
sleep 20; flocker-repl pause pg >/dev/null
one() { # tps and 99th percentile of the latency, ms
  rm -f /tmp/fbench_log*
  as pgbench -h /tmp -p 5499 -n -T "$seconds" -c 1 -l --log-prefix=/tmp/fbench_log postgres 2>/dev/null | awk '/^tps/ {printf "%s ", $3}'
  cat /tmp/fbench_log* | awk '{print $3}' | sort -n | awk '{a[NR]=$1} END {printf "%.1f\n", a[int(NR*0.99)]/1000}'
}
for r in $(seq "$rounds"); do
  echo "unprotected $(one)"
  (n=0; while :; do n=$((n+1)); zfs snapshot "$set@bare$r-$n"; sleep 1; done) & p=$!
  echo "bare-snapshots $(one)"; kill $p; wait $p 2>/dev/null || true
  before=$(flocker-repl status | grep '^standby unit=pg ' | grep -o 'rounds=[0-9]*')
  flocker-repl resume pg >/dev/null; sleep 3
  echo "replicated $(one)"
  echo "# $before $(flocker-repl status | grep '^standby unit=pg ' | grep -oE '(rounds|lag_ms|last_round_ms)=[0-9]*' | tr '\n' ' ')"
  flocker-repl pause pg >/dev/null; sleep 2
done
