// SPDX-License-Identifier: MIT OR GPL-2.0-only
/*
 * Looks up flows in the connection tracking table and hands out their TCP windows.
 *
 * User space fills `exchange.requests`, sets `exchange.count` and runs the program once with
 * BPF_PROG_TEST_RUN; the answers stand in `exchange.answers`, one a request, in order. Both sides
 * see the same pages, so nothing is copied. The table is that of the caller's network namespace.
 *
 * The entries are read without their lock: an answer is what stood there at that moment, and two
 * of its fields may be one packet apart.
 *
 * Everything that is needed of the kernel is declared here, and the offsets are fitted to the
 * running kernel when the object is loaded (CO-RE). nfq_guard/flows/exchange.py knows the layout of
 * `struct exchange`; a change here is a change there.
 */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int s32;

#define SECTION(name) __attribute__((section(name), used))
#define KERNEL __attribute__((preserve_access_index))
#define EXISTS(field) __builtin_preserve_field_info(field, 2)
#define SIZE_IN_KERNEL(type) __builtin_preserve_type_info(*(type *)0, 1)

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define NTOHS(number) __builtin_bswap16(number)
#else
#define NTOHS(number) (number)
#endif

/* Helpers of the kernel, by their numbers in its user interface. */
static u64 (*const bpf_jiffies64)(void) = (void *)118;
static long (*const bpf_loop)(u32 times, void *step, void *context, u64 flags) = (void *)181;

/* ---- The kernel's own types, as far as they are read. ---- */

union nf_inet_addr {
	u32 all[4];
} KERNEL;

union nf_conntrack_man_proto {
	u16 all;
} KERNEL;

struct nf_conntrack_man {
	union nf_inet_addr u3;
	union nf_conntrack_man_proto u;
} KERNEL;

struct nf_conntrack_tuple {
	struct nf_conntrack_man src;
	struct {
		union nf_inet_addr u3;
		union {
			u16 all;
		} u;
	} dst;
} KERNEL;

struct nf_conntrack_tuple_hash {
	struct nf_conntrack_tuple tuple;
} KERNEL;

struct nf_conntrack_zone {
	u16 id;
} KERNEL;

struct ip_ct_tcp_state {
	u32 td_end;
	u32 td_maxend;
	u32 td_maxwin;
	u32 td_maxack;
	u8 td_scale;
	u8 flags;
} KERNEL;

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
} KERNEL;

union nf_conntrack_proto {
	struct ip_ct_tcp tcp;
} KERNEL;

struct nf_conn {
	u32 timeout;
	struct nf_conntrack_zone zone;
	struct nf_conntrack_tuple_hash tuplehash[2];
	unsigned long status;
	u32 mark;
	union nf_conntrack_proto proto;
} KERNEL;

/* Declared for its size alone: 16 octets since 6.11, 12 before. */
struct bpf_ct_opts {
	s32 netns_id;
} KERNEL;

/* A test builds it with 12, to be what a kernel before 6.11 makes of it. */
#ifndef OPTIONS_SIZE
#define OPTIONS_SIZE SIZE_IN_KERNEL(struct bpf_ct_opts)
#endif

/* What is handed to the kernel as `struct bpf_ct_opts`. Of the shorter form the last four octets
 * are not passed, and the zone must then be 0. */
struct options {
	s32 netns_id;
	s32 error;
	u8 l4proto;
	u8 dir;
	u16 zone;
	u8 zone_dir;
	u8 reserved[3];
};

/* Only passed on; they have a body because the loader matches a struct with none but a struct. */
struct __sk_buff {
	u32 len;
};

struct bpf_sock_tuple {
	u8 octets[36];
};

extern struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
					 u32 tuple__sz, struct bpf_ct_opts *opts, u32 opts__sz)
	SECTION(".ksyms");
extern void bpf_ct_release(struct nf_conn *entry) SECTION(".ksyms");

/* ---- What is shared with user space. ---- */

#define BATCH 64
#define TCP 6
#define TUPLE_IPV4 12
#define TUPLE_IPV6 36
#define CALLERS_NETNS (-1)
#define OPTIONS_WITHOUT_ZONE 12
#define EINVAL 22
#define EOPNOTSUPP 95

/* Network byte order. The tuple is laid out as the kernel's bpf_sock_tuple is: both addresses,
 * both ports. */
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

/* Native byte order but for the addresses. `src` to `dport` are the tuple of the direction that
 * was not asked for. */
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
	u32 timeout;
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
	s32 error;
};

struct exchange {
	u32 count;
	u32 hz;           /* Ticks a second of this kernel; set once by user space. */
	u32 options_size; /* Tells user space whether zones can be asked for. */
	struct request requests[BATCH];
	struct answer answers[BATCH];
};

struct exchange exchange = {};

static __attribute__((always_inline)) void copy_tuple(struct answer *answer,
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
	answer->sport = NTOHS(tuple->src.u.all);
	answer->dport = NTOHS(tuple->dst.u.all);
}

static __attribute__((always_inline)) void copy_tcp(struct answer *answer,
						    const struct ip_ct_tcp *tcp)
{
	answer->state = tcp->state;
	answer->last_dir = tcp->last_dir;
	answer->last_index = tcp->last_index;
	answer->last_wscale = tcp->last_wscale;
	answer->last_flags = tcp->last_flags;
	answer->retrans = tcp->retrans;
	answer->last_win = tcp->last_win;
	answer->last_seq = tcp->last_seq;
	answer->last_ack = tcp->last_ack;
	answer->last_end = tcp->last_end;
	answer->window[0].td_end = tcp->seen[0].td_end;
	answer->window[0].td_maxend = tcp->seen[0].td_maxend;
	answer->window[0].td_maxwin = tcp->seen[0].td_maxwin;
	answer->window[0].td_maxack = tcp->seen[0].td_maxack;
	answer->td_scale[0] = tcp->seen[0].td_scale;
	answer->flags[0] = tcp->seen[0].flags;
	answer->window[1].td_end = tcp->seen[1].td_end;
	answer->window[1].td_maxend = tcp->seen[1].td_maxend;
	answer->window[1].td_maxwin = tcp->seen[1].td_maxwin;
	answer->window[1].td_maxack = tcp->seen[1].td_maxack;
	answer->td_scale[1] = tcp->seen[1].td_scale;
	answer->flags[1] = tcp->seen[1].flags;
}

struct run {
	struct __sk_buff *skb;
	u32 now;
	u32 hz;
	u32 options_size;
};

static long look_up(u32 index, struct run *run)
{
	struct options options = { .netns_id = CALLERS_NETNS };
	struct request *request;
	struct answer *answer;
	struct nf_conn *entry;
	s32 left;

	if (index >= BATCH)
		return 1;
	request = &exchange.requests[index];
	answer = &exchange.answers[index];
	answer->found = 0;
	answer->error = 0;
	options.l4proto = request->proto;
	options.zone = NTOHS(request->zone);
	if (options.zone && run->options_size == OPTIONS_WITHOUT_ZONE) {
		answer->error = -EOPNOTSUPP;
		return 0;
	}
	/* One call for each size: the verifier wants to see a constant. */
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
	answer->zone = EXISTS(entry->zone) ? entry->zone.id : 0;
	answer->mark = EXISTS(entry->mark) ? entry->mark : 0;
	answer->status = entry->status;
	left = entry->timeout - run->now;
	answer->timeout = left > 0 && run->hz ? (u32)left / run->hz : 0;
	if (options.dir)
		copy_tuple(answer, &entry->tuplehash[0].tuple);
	else
		copy_tuple(answer, &entry->tuplehash[1].tuple);
	if (request->proto == TCP)
		copy_tcp(answer, &entry->proto.tcp);
	bpf_ct_release(entry);
	return 0;
}

SECTION("tc")
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

/* The kernel lends the lookup only to programs that name a GPL-compatible licence. */
char licence[] SECTION("license") = "Dual MIT/GPL";
