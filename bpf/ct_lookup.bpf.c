/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Looks up flows in the connection tracking table and returns their TCP windows.
 *
 * User space fills `exchange.requests`, sets `exchange.count` and runs the program once with
 * BPF_PROG_TEST_RUN; `exchange.answers` then holds one answer a request, in order. Both sides map
 * the same pages, so nothing is copied. The table is that of the caller's network namespace.
 *
 * The entries are read without their lock: an answer is a snapshot, and two of its fields may be
 * one packet apart.
 *
 * The kernel types are declared here as far as they are read; their offsets are relocated to the
 * running kernel when the object is loaded (CO-RE). nfq_guard/flows/exchange.py relies on the
 * layout of `struct exchange`, which the assertions below fix.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

/* The few macros of libbpf's headers that are used, so that a build needs nothing but clang. */
#define SEC(name) __attribute__((section(name), used))
#define __ksym __attribute__((section(".ksyms")))
#define __always_inline inline __attribute__((always_inline))
#define bpf_core_field_offset(type, field) __builtin_preserve_field_info(((type *)0)->field, 0)
#define bpf_core_field_exists(field) __builtin_preserve_field_info(field, 2)
#define bpf_core_type_size(type) __builtin_preserve_type_info(*(type *)0, 1)
#define offsetof(type, member) __builtin_offsetof(type, member)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define bpf_ntohs(number) __builtin_bswap16(number)
#else
#define bpf_ntohs(number) (number)
#endif

/* Kernel helpers, by their numbers in the user interface (linux/bpf.h). */
static long (*const bpf_probe_read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static u64 (*const bpf_jiffies64)(void) = (void *)118;
static long (*const bpf_loop)(u32 times, void *step, void *context, u64 flags) = (void *)181;

/* ---- The kernel's own types, as far as they are read. ---- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

union nf_inet_addr {
	u32 all[4];
};

union nf_conntrack_man_proto {
	u16 all;
};

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
};

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			u16 all;
		} u;
	} dst;
};

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
};

struct nf_conntrack_zone {
	u16 id;
};

struct ip_ct_tcp_state {
	u32 td_end;
	u32 td_maxend;
	u32 td_maxwin;
	u32 td_maxack;
	u8 td_scale;
	u8 flags;
};

struct ip_ct_tcp {
	struct ip_ct_tcp_state seen[2];
	u8 state;
	u8 last_dir;
	u8 retrans;
	u8 last_index;
	u32 last_seq;
	u32 last_ack;
	u32 last_end;
	u16 last_win;
	u8 last_wscale;
	u8 last_flags;
};

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
};

struct nf_conn {
	u32 timeout;
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	u32 mark;
	union nf_conntrack_proto proto;
};

/* Declared for its size alone: 16 bytes since Linux 6.11, 12 before. */
struct bpf_ct_opts {
	s32 netns_id;
};

#pragma clang attribute pop

/* Only passed on. They have a body because libbpf matches a struct without one to a struct
 * without one only. */
struct __sk_buff {
	u32 len;
};

struct bpf_sock_tuple {
	u8 octets[36];
};

/* The layout of the kernel's `struct bpf_ct_opts` since Linux 6.11. A kernel before takes the first
 * OPTIONS_WITHOUT_ZONE bytes, where `ct_zone_id` is reserved and must be 0. */
struct lookup_options {
	s32 netns_id;
	s32 error;
	u8 l4proto;
	u8 dir;
	u16 ct_zone_id;
	u8 ct_zone_dir;
	u8 reserved[3];
};

#define OPTIONS_WITHOUT_ZONE 12

_Static_assert(offsetof(struct lookup_options, error) == 4, "bpf_ct_opts");
_Static_assert(offsetof(struct lookup_options, l4proto) == 8, "bpf_ct_opts");
_Static_assert(offsetof(struct lookup_options, ct_zone_id) == 10, "bpf_ct_opts");
_Static_assert(sizeof(struct lookup_options) == 16, "bpf_ct_opts");

/* The size to pass. A test builds with 12, which is what a kernel before 6.11 makes of it. */
#ifndef OPTIONS_SIZE
#define OPTIONS_SIZE bpf_core_type_size(struct bpf_ct_opts)
#endif

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 u32 tuple__sz, struct bpf_ct_opts *opts,
					 u32 opts__sz) __ksym;
extern void bpf_ct_release(struct nf_conn *entry) __ksym;

#define BPF_F_CURRENT_NETNS (-1)
#define IPPROTO_TCP 6
#define EINVAL 22
#define EOPNOTSUPP 95

/* ---- What is shared with user space. ---- */

#define BATCH 64
#define TUPLE_IPV4 12
#define TUPLE_IPV6 36

/* Network byte order. The tuple is laid out as the kernel's `struct bpf_sock_tuple`: both
 * addresses, both ports. */
struct request {
	u8 tuple_size;
	u8 proto;
	u16 zone;
	u8 tuple[TUPLE_IPV6];
};

struct window {
	u32 td_end;
	u32 td_maxend;
	u32 td_maxwin;
	u32 td_maxack;
};

/* Host byte order but for the addresses. `sport` to `dst` are the tuple of the other direction
 * than the requested one. */
struct answer {
	u8 found;
	u8 dir;
	u8 state;
	u8 last_dir;
	u8 last_index;
	u8 last_wscale;
	u8 last_flags;
	u8 retrans;
	u16 zone;
	u16 last_win;
	u32 status;
	u32 mark;
	u32 timeout; /* Whole seconds, rounded down. */
	u32 last_seq;
	u32 last_ack;
	u32 last_end;
	struct window window[2];
	u8 td_scale[2];
	u8 flags[2];
	u16 sport;
	u16 dport;
	u32 src[4];
	u32 dst[4];
	s32 error; /* A negative errno unless found; -ENOENT: no entry. */
};

struct exchange {
	u32 count;
	u32 hz;           /* Ticks a second of this kernel; set once by user space. */
	u32 options_size; /* Set here: 16 where zones can be looked up. */
	struct request requests[BATCH];
	struct answer answers[BATCH];
};

struct exchange exchange = {};

#define ASSERT_OFFSET(type, member, offset)                                                        \
	_Static_assert(offsetof(struct type, member) == (offset), #type "." #member)
#define ASSERT_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), #type)

ASSERT_OFFSET(request, tuple_size, 0);
ASSERT_OFFSET(request, proto, 1);
ASSERT_OFFSET(request, zone, 2);
ASSERT_OFFSET(request, tuple, 4);
ASSERT_SIZE(request, 40);

ASSERT_OFFSET(window, td_end, 0);
ASSERT_OFFSET(window, td_maxend, 4);
ASSERT_OFFSET(window, td_maxwin, 8);
ASSERT_OFFSET(window, td_maxack, 12);
ASSERT_SIZE(window, 16);

ASSERT_OFFSET(answer, found, 0);
ASSERT_OFFSET(answer, dir, 1);
ASSERT_OFFSET(answer, state, 2);
ASSERT_OFFSET(answer, last_dir, 3);
ASSERT_OFFSET(answer, last_index, 4);
ASSERT_OFFSET(answer, last_wscale, 5);
ASSERT_OFFSET(answer, last_flags, 6);
ASSERT_OFFSET(answer, retrans, 7);
ASSERT_OFFSET(answer, zone, 8);
ASSERT_OFFSET(answer, last_win, 10);
ASSERT_OFFSET(answer, status, 12);
ASSERT_OFFSET(answer, mark, 16);
ASSERT_OFFSET(answer, timeout, 20);
ASSERT_OFFSET(answer, last_seq, 24);
ASSERT_OFFSET(answer, last_ack, 28);
ASSERT_OFFSET(answer, last_end, 32);
ASSERT_OFFSET(answer, window, 36);
ASSERT_OFFSET(answer, td_scale, 68);
ASSERT_OFFSET(answer, flags, 70);
ASSERT_OFFSET(answer, sport, 72);
ASSERT_OFFSET(answer, dport, 74);
ASSERT_OFFSET(answer, src, 76);
ASSERT_OFFSET(answer, dst, 92);
ASSERT_OFFSET(answer, error, 108);
ASSERT_SIZE(answer, 112);

ASSERT_OFFSET(exchange, count, 0);
ASSERT_OFFSET(exchange, hz, 4);
ASSERT_OFFSET(exchange, options_size, 8);
ASSERT_OFFSET(exchange, requests, 12);
ASSERT_OFFSET(exchange, answers, 12 + BATCH * 40);
ASSERT_SIZE(exchange, 12 + BATCH * (40 + 112));

static __always_inline void copy_tuple(struct answer *answer,
				       const struct nf_conntrack_tuple *tuple)
{
	answer->src[0] = tuple->src.u3.all[0];
	answer->src[1] = tuple->src.u3.all[1];
	answer->src[2] = tuple->src.u3.all[2];
	answer->src[3] = tuple->src.u3.all[3];
	answer->dst[0] = tuple->dst.u3.all[0];
	answer->dst[1] = tuple->dst.u3.all[1];
	answer->dst[2] = tuple->dst.u3.all[2];
	answer->dst[3] = tuple->dst.u3.all[3];
	answer->sport = bpf_ntohs(tuple->src.u.all);
	answer->dport = bpf_ntohs(tuple->dst.u.all);
}

/* More than the kernel's `struct ip_ct_tcp` takes, which is 60 bytes in Linux 6.1 to 7.3. The
 * verifier refuses the program on a kernel where it takes more. */
#define TCP_SIZE_MAX 96

/* A member of the kernel's `struct ip_ct_tcp` that was copied to `tcp`. */
#define TCP_MEMBER(type, member)                                                                   \
	(*(type *)(tcp + bpf_core_field_offset(struct ip_ct_tcp, member)))

/* Copies the struct and takes its members from the copy. The verifier of Linux 6.1 refuses to read
 * them in place: it takes `union nf_conntrack_proto` for its first member, which is DCCP's. */
static __always_inline void copy_tcp(struct answer *answer, const struct ip_ct_tcp *from)
{
	u8 tcp[TCP_SIZE_MAX] __attribute__((aligned(8)));

	bpf_probe_read_kernel(tcp, bpf_core_type_size(struct ip_ct_tcp), from);
	answer->state = TCP_MEMBER(u8, state);
	answer->last_dir = TCP_MEMBER(u8, last_dir);
	answer->last_index = TCP_MEMBER(u8, last_index);
	answer->last_wscale = TCP_MEMBER(u8, last_wscale);
	answer->last_flags = TCP_MEMBER(u8, last_flags);
	answer->retrans = TCP_MEMBER(u8, retrans);
	answer->last_win = TCP_MEMBER(u16, last_win);
	answer->last_seq = TCP_MEMBER(u32, last_seq);
	answer->last_ack = TCP_MEMBER(u32, last_ack);
	answer->last_end = TCP_MEMBER(u32, last_end);
	answer->window[0].td_end = TCP_MEMBER(u32, seen[0].td_end);
	answer->window[0].td_maxend = TCP_MEMBER(u32, seen[0].td_maxend);
	answer->window[0].td_maxwin = TCP_MEMBER(u32, seen[0].td_maxwin);
	answer->window[0].td_maxack = TCP_MEMBER(u32, seen[0].td_maxack);
	answer->td_scale[0] = TCP_MEMBER(u8, seen[0].td_scale);
	answer->flags[0] = TCP_MEMBER(u8, seen[0].flags);
	answer->window[1].td_end = TCP_MEMBER(u32, seen[1].td_end);
	answer->window[1].td_maxend = TCP_MEMBER(u32, seen[1].td_maxend);
	answer->window[1].td_maxwin = TCP_MEMBER(u32, seen[1].td_maxwin);
	answer->window[1].td_maxack = TCP_MEMBER(u32, seen[1].td_maxack);
	answer->td_scale[1] = TCP_MEMBER(u8, seen[1].td_scale);
	answer->flags[1] = TCP_MEMBER(u8, seen[1].flags);
}

struct run {
	struct __sk_buff *skb;
	u32 now;
	u32 hz;
	u32 options_size;
};

static long look_up(u32 index, struct run *run)
{
	struct lookup_options options = { .netns_id = BPF_F_CURRENT_NETNS };
	struct request *request;
	struct answer *answer;
	struct nf_conn *entry;
	s32 left;

	/* The verifier wants the bound; it also ends the loop where `exchange.count` is too high. */
	if (index >= BATCH)
		return 1;
	request = &exchange.requests[index];
	answer = &exchange.answers[index];
	answer->found = 0;
	answer->error = 0;
	options.l4proto = request->proto;
	options.ct_zone_id = bpf_ntohs(request->zone);
	if (options.ct_zone_id && run->options_size == OPTIONS_WITHOUT_ZONE) {
		answer->error = -EOPNOTSUPP;
		return 0;
	}
	/* One call for each size: the verifier wants a constant. */
	if (request->tuple_size == TUPLE_IPV4)
		entry = bpf_skb_ct_lookup(run->skb, (void *)request->tuple, TUPLE_IPV4,
					  (void *)&options, OPTIONS_SIZE);
	else if (request->tuple_size == TUPLE_IPV6)
		entry = bpf_skb_ct_lookup(run->skb, (void *)request->tuple, TUPLE_IPV6,
					  (void *)&options, OPTIONS_SIZE);
	else {
		answer->error = -EINVAL;
		return 0;
	}
	if (!entry) {
		answer->error = options.error;
		return 0;
	}
	answer->found = 1;
	answer->dir = options.dir;
	answer->zone = bpf_core_field_exists(entry->zone) ? entry->zone.id : 0;
	answer->mark = bpf_core_field_exists(entry->mark) ? entry->mark : 0;
	answer->status = entry->status;
	left = entry->timeout - run->now;
	answer->timeout = left > 0 && run->hz ? (u32)left / run->hz : 0;
	if (options.dir)
		copy_tuple(answer, &entry->tuplehash[0].tuple);
	else
		copy_tuple(answer, &entry->tuplehash[1].tuple);
	if (request->proto == IPPROTO_TCP)
		copy_tcp(answer, &entry->proto.tcp);
	bpf_ct_release(entry);
	return 0;
}

SEC("tc")
int ct_lookup(struct __sk_buff *skb)
{
	struct run run = {
		.skb = skb,
		.now = (u32)bpf_jiffies64(),
		.hz = exchange.hz,
		.options_size = OPTIONS_SIZE,
	};

	exchange.options_size = run.options_size;
	bpf_loop(exchange.count, look_up, &run, 0);
	return 0;
}

/* The kernel offers the lookup only to programs with a GPL-compatible licence. */
char licence[] SEC("license") = "Dual MIT/GPL";
