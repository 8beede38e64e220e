/* SPDX-License-Identifier: (Apache-2.0 OR MIT) */
/*
 * The verdict maps of Tracker, for eBPF programs and other readers.
 *
 *   <bpffs>/tracker/<instance>/public/NAMES      name -> index
 *   <bpffs>/tracker/<instance>/public/VERDICTS   index -> struct tracker_verdict
 *
 * The layout is frozen. Both maps keep their size for the life of the instance; a name keeps its index as long as the service or
 * member exists. Programs only read; the daemon writes.
 *
 * In an eBPF program, include <linux/bpf.h> and <bpf/bpf_helpers.h> (libbpf) first, define TRACKER_MAPS, and load with both maps
 * taken from their pins:
 *
 *   bpftool prog load PROGRAM.o PIN map name NAMES pinned .../public/NAMES map name VERDICTS pinned .../public/VERDICTS
 */
#ifndef TRACKER_VERDICTS_H
#define TRACKER_VERDICTS_H

#include <linux/types.h>

#define TRACKER_NAME_LEN 64
#define TRACKER_CAPACITY 65536
#define TRACKER_LAYOUT 1
/* An entry that was refreshed longer ago than this means unknown (nanoseconds). */
#define TRACKER_LEASE_NS 3000000000ULL

/* "service" or "service/member", zeros behind it. */
struct tracker_name {
	char name[TRACKER_NAME_LEN];
};

enum tracker_verdict_value {
	TRACKER_UNKNOWN = 0,
	TRACKER_UP = 1,
	TRACKER_DOWN = 2,
};

enum tracker_admin {
	TRACKER_ADMIN_AUTO = 0,
	TRACKER_ADMIN_MAINTENANCE = 1,
	TRACKER_ADMIN_UP = 2,
	TRACKER_ADMIN_DOWN = 3,
};

struct tracker_verdict {
	__u32 generation;	 /* grows by two with each change; odd while the entry is written */
	__u8 layout;		 /* TRACKER_LAYOUT, once written */
	__u8 verdict;		 /* what counts, by verdict and admin state: enum tracker_verdict_value */
	__u8 cause;		 /* the measured cause, by its number in docs/reference/causes.md */
	__u8 admin;		 /* enum tracker_admin */
	__u32 weight;		 /* of a member; of a service, the sum over its selected members that are up */
	__u32 selected;		 /* 1 if a member is in use; of a service, how many members are */
	__u64 changed_mono_ns;	 /* CLOCK_MONOTONIC of the last change */
	__u64 refreshed_mono_ns; /* CLOCK_MONOTONIC of the last refresh, once a second */
};

#ifdef TRACKER_MAPS
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, TRACKER_CAPACITY);
	__type(key, struct tracker_name);
	__type(value, __u32);
} NAMES SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, TRACKER_CAPACITY);
	__type(key, __u32);
	__type(value, struct tracker_verdict);
} VERDICTS SEC(".maps");

/*
 * What counts of a service or member: up, down, or unknown. Unknown is also a name that is not there, and an entry that no daemon
 * refreshes. One byte decides, so the answer is never half of a change; readers of several fields compare `generation` before and
 * after, and read again if it is odd or has grown.
 */
static __always_inline int tracker_verdict(const struct tracker_name *name)
{
	__u32 *index = bpf_map_lookup_elem(&NAMES, name);
	if (!index)
		return TRACKER_UNKNOWN;
	struct tracker_verdict *entry = bpf_map_lookup_elem(&VERDICTS, index);
	if (!entry || entry->layout != TRACKER_LAYOUT)
		return TRACKER_UNKNOWN;
	__u64 refreshed = *(volatile __u64 *)&entry->refreshed_mono_ns;
	__u64 now = bpf_ktime_get_ns();
	if (now > refreshed && now - refreshed > TRACKER_LEASE_NS)
		return TRACKER_UNKNOWN;
	return *(volatile __u8 *)&entry->verdict;
}
#endif /* TRACKER_MAPS */

#endif /* TRACKER_VERDICTS_H */
