#!/bin/sh
# Runs in a chroot on the guest's file tree: everything that makes it a lab guest.
# The tree is a hard-linked copy, so files are replaced, never changed in place.
set -eu
new() { rm -f "$1"; mkdir -p "$(dirname "$1")"; cat >"$1"; }

passwd -d root >/dev/null 2>&1 || true
printf 'localhost\n' | new /etc/hostname
printf '127.0.0.1 localhost\n10.77.0.1 alpha\n10.77.0.2 beta\n10.77.0.3 gamma\n' | new /etc/hosts
printf '/dev/vda / ext4 noatime 0 0\n' | new /etc/fstab
new /etc/resolv.conf </dev/null
mkdir -p /mnt/share /var/lib/postgresql

# one name and one set of addresses per guest, from the kernel command line
new /usr/local/sbin/lab-net <<'S'
#!/bin/sh
for w in $(cat /proc/cmdline); do case $w in lab.name=*) n=${w#*=};; lab.n=*) i=${w#*=};; lab.mtu=*) mtu=${w#*=};; esac; done
hostname "${n:-guest}"; echo "${n:-guest}" >/etc/hostname
printf '%08x' "$((0x77000000 + ${i:-9}))" | sed 's/\(..\)\(..\)\(..\)\(..\)/\\x\4\\x\3\\x\2\\x\1/' | xargs -0 printf >/etc/hostid
modprobe virtio_net
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0; ip link set eth0 up
ip addr add "10.77.0.${i:-9}/24" dev eth1; ip link set eth1 mtu "${mtu:-1500}" up
S
chmod 755 /usr/local/sbin/lab-net
new /etc/systemd/system/lab-net.service <<'S'
[Unit]
Description=lab network
DefaultDependencies=no
After=systemd-remount-fs.service
Before=ssh.service network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/lab-net
[Install]
WantedBy=multi-user.target
S
# modules that would otherwise be loaded on first use
new /etc/modules-load.d/lab.conf <<'S'
zfs
9pnet_virtio
9p
overlay
veth
bridge
unix_diag
inet_diag
tcp_diag
udp_diag
netlink_diag
packet_diag
sch_netem
S
printf 'options zfs zfs_arc_max=402653184 zfs_arc_min=67108864\n' | new /etc/modprobe.d/zfs.conf

new /etc/ssh/sshd_config <<'S'
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
UsePAM no
UseDNS no
PrintMotd no
X11Forwarding no
MaxSessions 100
MaxStartups 100
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
PidFile none
S
new /root/.ssh/config <<'S'
Host *
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  LogLevel ERROR
S
# containers: no systemd cgroup manager, host-like defaults; storage on the root disk unless told otherwise
new /etc/containers/containers.conf <<'S'
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[containers]
log_driver = "k8s-file"
apparmor_profile = "unconfined"
pids_limit = 0
S
new /etc/containers/policy.json <<'S'
{"default":[{"type":"insecureAcceptAnything"}]}
S
new /root/.profile <<'S'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
S
printf 'export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:$(echo /usr/lib/postgresql/*/bin) LC_ALL=C.UTF-8\n' | new /root/.bashrc

systemctl -q set-default multi-user.target
systemctl -q enable lab-net.service ssh.service
# No database of the distribution's own: tests make theirs.
for u in mariadb redis-server nats-server; do systemctl -q disable "$u.service" 2>/dev/null || true; done
# What a host starts at boot that touches pools, mounts, containers or databases starts here, too. Masked is only what
# makes a boot slow under emulation and has no say in that: consoles, timers, bookkeeping of systemd, udev's settling.
for u in getty@tty1.service serial-getty@ttyS0.service apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
  fstrim.timer e2scrub_all.timer e2scrub_reap.service sanoid.timer logrotate.timer systemd-tmpfiles-clean.timer \
  systemd-pstore.service systemd-tpm2-setup.service systemd-tpm2-setup-early.service systemd-timesyncd.service \
  systemd-update-utmp.service systemd-update-utmp-runlevel.service systemd-random-seed.service systemd-machine-id-commit.service \
  systemd-journal-flush.service systemd-journal-catalog-update.service systemd-hwdb-update.service ldconfig.service \
  systemd-update-done.service systemd-sysusers.service systemd-firstboot.service sshd-keygen.service \
  podman-auto-update.timer remote-fs.target nftables.service iperf3.service \
  sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount sys-fs-fuse-connections.mount modprobe@.service \
  proc-sys-fs-binfmt_misc.automount; do
  ln -sfn /dev/null "/etc/systemd/system/$u"
done
