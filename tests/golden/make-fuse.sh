#!/bin/sh
# Makes the fuse-*.zstream streams and their listings with zfs-fuse (pool version 23), as root.
# usage: make-fuse.sh OUT    (needs a running zfs-fuse, python3)
set -eu
export LC_ALL=C
OUT=$1
POOL=streampool
WORK=$(mktemp -d)
MNT=$WORK/mnt
mkdir -p "$OUT"
truncate -s 192M "$WORK/pool.img"
zpool create -o cachefile=none -m "$MNT" $POOL "$WORK/pool.img"
trap 'zpool destroy $POOL; rm -rf "$WORK"' EXIT
zfs create $POOL/d
D=$MNT/d

noise() { # noise SEED BYTES: bytes that do not compress, the same each time
    python3 -c 'import random,sys; sys.stdout.buffer.write(random.Random(int(sys.argv[1])).randbytes(int(sys.argv[2])))' "$1" "$2"
}
text() { i=0; while [ $i -lt "$1" ]; do echo "line $i of a text that compresses well"; i=$((i + 1)); done; }
tree() { # what a receiver must end up with, as in the other listings
    (cd "$D" && find . -printf '%y %m %s %p %l\n' | sort -k4 && find . -type f -print0 | sort -z | xargs -0 sha256sum)
}

# The content.
cd "$D"
mkdir dir dir/sub
noise 1 140000 > noise.bin
text 4000 > text.log
: > empty
printf 'x' > one-byte
noise 2 512 > sector
text 3000 | head -c 131072 > block
noise 4 65537 > odd-size
truncate -s 3M sparse
printf 'in the middle' | dd of=sparse bs=1 seek=1500000 conv=notrunc status=none
for i in 0 1 2 3 4 5 6 7 8 9; do text $((i * 9 + 1)) > dir/sub/f$i; done
printf 'hello\n' > dir/hello
chmod 4755 dir/hello
ln dir/hello dir/hard
ln -s ../text.log dir/link
ln -s "$(printf 'a%.0s' $(seq 1 150))" dir/long-link
mkfifo dir/fifo
# No extended attribute: zfs-fuse does not store them.
zfs snapshot $POOL/d@s1
tree > "$OUT/fuse@s1.tree.txt"

# Deletes, overwrites, truncations, renames, growth.
rm dir/sub/f3 dir/sub/f4 empty
printf 'OVER' | dd of=text.log bs=1 seek=100000 conv=notrunc status=none
truncate -s 60000 noise.bin
truncate -s 1M sparse
mv dir/sub dir/moved
mv sector dir/sector
text 50 >> dir/moved/f9
noise 5 30000 > new.bin
zfs snapshot $POOL/d@s2
tree > "$OUT/fuse@s2.tree.txt"

# Object numbers freed and taken again with other sizes; a file emptied and filled; a directory grown.
rm -r dir/moved
i=0; while [ $i -lt 30 ]; do mkdir -p many/d$((i % 3)); echo $i > many/d$((i % 3))/a-file-with-a-long-name-$i; i=$((i + 1)); done
: > block
printf 'small now' > odd-size
noise 6 20000 | dd of=sparse bs=1000 seek=500 conv=notrunc status=none
rm dir/hard
chmod 600 text.log
zfs snapshot $POOL/d@s3
tree > "$OUT/fuse@s3.tree.txt"
cd /

send() { name=$1; shift; zfs send "$@" > "$OUT/$name.zstream"; }
send fuse-full-s1 $POOL/d@s1
send fuse-full-s3 $POOL/d@s3
send fuse-incr-s1-s2 -i @s1 $POOL/d@s2
send fuse-incr-s2-s3 -i @s2 $POOL/d@s3
send fuse-incr-s1-s3 -i @s1 $POOL/d@s3
send fuse-package-I -I @s1 $POOL/d@s3
send fuse-package-R -R $POOL/d@s3
zfs snapshot $POOL/d@s4
send fuse-incr-empty -i @s3 $POOL/d@s4

# Received again and compared, so that the streams are known to be good.
zfs receive $POOL/back < "$OUT/fuse-full-s1.zstream"
zfs receive $POOL/back < "$OUT/fuse-incr-s1-s2.zstream"
zfs receive $POOL/back < "$OUT/fuse-incr-s2-s3.zstream"
D=$MNT/back
tree > "$WORK/back.tree"
cmp "$WORK/back.tree" "$OUT/fuse@s3.tree.txt"
zfs get -Hp -o name,value guid $POOL/d@s1 $POOL/d@s2 $POOL/d@s3 > "$OUT/fuse-guids.tsv"
