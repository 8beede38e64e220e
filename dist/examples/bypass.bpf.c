/* SPDX-License-Identifier: (Apache-2.0 OR MIT) */
/*
 * TC ingress: marks every packet while the service "fw-1" is down, so that a rule can route it past the service.
 *
 *   clang -O2 -g -target bpf -I /usr/include/tracker -c bypass.bpf.c -o bypass.bpf.o
 *   P=/sys/fs/bpf/tracker/default/public
 *   bpftool prog load bypass.bpf.o /sys/fs/bpf/bypass type classifier \
 *       map name NAMES pinned $P/NAMES map name VERDICTS pinned $P/VERDICTS
 *   tc qdisc add dev eth0 clsact
 *   tc filter add dev eth0 ingress bpf direct-action object-pinned /sys/fs/bpf/bypass
 *   ip rule add fwmark 0xb1 table 177
 *   ip route add default via 192.0.2.1 table 177
 *
 * The packet's path is chosen for each packet: a service that comes up again gets its flows back at once.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define TRACKER_MAPS
#include "tracker_verdicts.h"

#define BYPASS_MARK 0xb1

SEC("tc")
int bypass(struct __sk_buff *skb)
{
	struct tracker_name service = { "fw-1" };

	/* Unknown changes nothing: what is not known to be down keeps its traffic. */
	if (tracker_verdict(&service) == TRACKER_DOWN)
		skb->mark = BYPASS_MARK;
	return TC_ACT_OK;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
