#!/bin/sh
# Makes fuse-*.txt: what zfs-fuse prints for the commands a replication tool has to understand.
# Needs root and a running zfs-fuse. Usage: make-fuse-cli.sh OUT. Guids, times and the pools' mountpoints differ from
# run to run; the words do not.
set -u
out=$1
work=$(mktemp -d)
a=zfspoolgolda b=zfspoolgoldb
truncate -s 128M "$work/a.img" "$work/b.img"
zpool create -o cachefile=none -m "$work/a" $a "$work/a.img" 2>/dev/null
zpool create -o cachefile=none -m "$work/b" $b "$work/b.img" 2>/dev/null
export LC_ALL=C

# keep NAME COMMAND: the command in words, its stdout, its stderr, its exit status.
keep() {
    sh -c "$2" >"$work/out" 2>"$work/err"
    status=$?
    {
        echo "\$ $2"
        echo "--- stdout"
        cat "$work/out"
        echo "--- stderr"
        # The list of properties after a usage error is long and says nothing.
        sed '/^The following properties are supported/,$d' "$work/err"
        echo "--- exit $status"
    } | sed "s#$work#/work#g" >"$out/fuse-$1.txt"
}

zfs create "$a/d 1"
echo hello >"$work/a/d 1/f"
zfs snapshot "$a/d 1@s:1"
echo more >>"$work/a/d 1/f"
zfs snapshot "$a/d 1@s2"
echo again >>"$work/a/d 1/f"
zfs snapshot "$a/d 1@s3"
zfs send "$a/d 1@s:1" >"$work/full"
zfs send -i s:1 "$a/d 1@s2" >"$work/i12"
zfs send -i s2 "$a/d 1@s3" >"$work/i23"
head -c 4000 "$work/full" >"$work/cut"
{ head -c 2000 "$work/full"; printf XXXX; tail -c +2005 "$work/full"; } >"$work/bad"

keep version 'zfs version'
keep pool-version 'zpool upgrade -v'
keep get-inventory "zfs get -Hp -r -d 1 -o name,property,value guid,createtxg,creation,userrefs '$a/d 1'"
keep get-dataset "zfs get -Hp -o name,property,value type,guid,used,referenced,readonly '$a/d 1'"
keep list "zfs list -H -r -t filesystem,volume -o name,guid $a"
keep err-list-p "zfs list -Hp $a"
keep err-written "zfs get -Hp written $a"
keep err-no-dataset "zfs get -Hp guid $a/nope"
keep err-no-snap "zfs send '$a/d 1@nope'"
keep err-no-snap-get "zfs get -Hp guid '$a/d 1@nope'"
keep err-no-source "zfs send -i nope '$a/d 1@s2'"
keep err-incr-wrong-order "zfs send -i s2 '$a/d 1@s:1'"
keep err-exists-create "zfs create '$a/d 1'"
keep err-exists-snapshot "zfs snapshot '$a/d 1@s2'"
keep err-snapshot-no-dataset "zfs snapshot $a/nope@s"
keep err-no-pool 'zfs create nopool/x'
keep err-recv-no-parent "zfs receive -u $b/none/x <$work/full"
keep err-recv-corrupt "zfs receive -u $b/x <$work/bad"
keep err-recv-truncated "zfs receive -u $b/x <$work/cut"
keep err-recv-empty "zfs receive -u $b/x </dev/null"
keep err-not-a-stream "zfs receive -u $b/x </etc/services"
keep err-recv-no-dataset "zfs receive -u $b/x <$work/i12"
zfs receive -u $b/x <"$work/full"
keep err-recv-exists "zfs receive -u $b/x <$work/full"
keep err-recv-no-base "zfs receive -u $b/x <$work/i23"
zfs mount $b/x && echo stray >"$work/b/x/stray" && zfs unmount $b/x
keep err-recv-modified "zfs receive -u $b/x <$work/i12"
zfs rollback $b/x@s:1
zfs receive -u $b/x@taken <"$work/i12"
keep err-recv-name-taken "zfs receive -u $b/x@taken <$work/i23"
keep err-rollback-newer "zfs rollback $b/x@s:1"
zfs hold t "$a/d 1@s2"
keep err-hold-twice "zfs hold t '$a/d 1@s2'"
keep err-release-none "zfs release no '$a/d 1@s2'"
keep err-holds "zfs holds '$a/d 1@s2'"
keep err-destroy-held "zfs destroy '$a/d 1@s2'"
zfs release t "$a/d 1@s2"
keep err-destroy-children "zfs destroy '$a/d 1'"
zfs clone "$a/d 1@s2" $a/clone
keep err-destroy-cloned "zfs destroy '$a/d 1@s2'"
exec 5>"$work/a/clone/open"
keep err-unmount-busy "zfs unmount $a/clone"
exec 5>&-
keep err-unmount-not-mounted "zfs unmount $b/x"
keep err-mount-twice "zfs mount $a/clone"
dd if=/dev/urandom of="$work/a/fill" bs=1M count=200 2>/dev/null
sync
keep err-no-space-create "zfs create $a/more"
keep err-no-space-snapshot "zfs snapshot $a@full"
dd if=/dev/urandom of="$work/b/fill" bs=1M count=200 2>/dev/null
sync
keep err-no-space-recv "zfs receive -u $b/y <$work/full"

zpool destroy -f $a
zpool destroy -f $b
rm -r "$work"
