#!/bin/sh
# The first process of a cluster with real nodes, alone in new network, mount and process namespaces.
# It makes there what nodes need and then only waits: when it is killed, the kernel ends every process,
# mount and network device in here, whatever state they are in.
# usage: sandbox-init.sh READY_FILE NODE_ADDRESS…
set -eu
ready=$1
shift

# What nodes write outside their own directories must not reach the machine: it lands in memory.
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=755 tmpfs /var/log
mkdir -p /run/var-lib/written /run/var-lib/work
mount -t overlay -o lowerdir=/var/lib,upperdir=/run/var-lib/written,workdir=/run/var-lib/work overlay /var/lib

ip link set lo up
# A fixed hardware address: a bridge's own changes as pods come and go, and connections then stall.
ip link add apscli0 address 02:00:0a:55:00:01 type bridge
for address in 10.85.0.1/16 "$@"; do
	ip address add "$address" dev apscli0
done
ip link set apscli0 up

: >"$ready"
# Orphans end up here; with this signal ignored the kernel reaps them.
trap '' CHLD
exec sleep infinity
