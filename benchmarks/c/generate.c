// SPDX-License-Identifier: MIT
/*
 * generate INTERFACE FRAMES COUNT RATE [stamp] [backlog PATH LOW HIGH]: sends COUNT Ethernet
 * frames on INTERFACE, cycling through the file FRAMES (each preceded by its length, 16 bits in
 * native order).
 *
 * RATE is in packets a second, sent at a steady rate; 0 is as fast as possible. COUNT 0 sends until
 * SIGTERM. With `stamp`, the first eight bytes of each TCP payload over IPv4 are the time
 * of sending (CLOCK_REALTIME, nanoseconds, native order) and the checksum is correct.
 *
 * With `backlog`, RATE is ignored: packets are sent so that between LOW and HIGH of them wait in
 * the queue, by the counters of PATH (.../net/netfilter/nfnetlink_queue), summed over all queues.
 * The reader is then never idle, and the queue never overflows.
 *
 * Prints one line at the end: packets sent, seconds taken, CPU seconds used (including the kernel's
 * work on the packets that is accounted to this process), packets that the interface refused.
 */

#define _GNU_SOURCE /* sendmmsg */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef PACKET_QDISC_BYPASS
#define PACKET_QDISC_BYPASS 20
#endif

#define BURST 64
/* Pacing interval: the packets that became due since the last one are sent together. */
#define BEAT_NS 100000LL
/* Pause between two readings of the backlog; at most far less than LOW packets take. */
#define PAUSE_MIN_NS 20000LL
#define PAUSE_MAX_NS 200000LL
#define FRAME_MAX 2048
#define ETHERNET 14

struct frame {
	uint16_t length;
	const uint8_t *octets;
};

static volatile sig_atomic_t stopped;
static struct frame *frames;
static size_t frame_count, next_frame;
static uint8_t copies[BURST][FRAME_MAX];
static struct mmsghdr messages[BURST];
static struct iovec parts[BURST];
static int out, stamping;
static unsigned long long sent, refused;

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

static void fail(const char *what)
{
	fprintf(stderr, "generate: %s: %s\n", what, strerror(errno));
	exit(1);
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec time;

	clock_gettime(clock, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void sleep_until(int64_t when)
{
	struct timespec time = { .tv_sec = when / 1000000000LL, .tv_nsec = when % 1000000000LL };

	clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
}

static void read_frames(const char *path)
{
	struct stat status;
	size_t at = 0, room = 0, size;
	uint8_t *octets;
	int file = open(path, O_RDONLY | O_CLOEXEC);

	if (file < 0 || fstat(file, &status) < 0)
		fail(path);
	size = (size_t)status.st_size;
	octets = malloc(size + 1);
	for (size_t got = 0; got < size;) {
		ssize_t more = read(file, octets + got, size - got);

		if (more <= 0)
			fail(path);
		got += (size_t)more;
	}
	close(file);
	while (at + 2 <= size) {
		uint16_t length;

		memcpy(&length, octets + at, 2);
		if (length < ETHERNET || length > FRAME_MAX || at + 2 + length > size) {
			errno = EINVAL;
			fail(path);
		}
		if (frame_count == room) {
			room = room ? room * 2 : 1024;
			frames = realloc(frames, room * sizeof(*frames));
		}
		frames[frame_count++] = (struct frame){ length, octets + at + 2 };
		at += 2 + (size_t)length;
	}
	if (!frame_count) {
		errno = ENODATA;
		fail(path);
	}
}

static uint32_t sum16(const uint8_t *octets, size_t length, uint32_t sum)
{
	for (size_t i = 0; i + 1 < length; i += 2)
		sum += (uint32_t)octets[i] << 8 | octets[i + 1];
	if (length & 1)
		sum += (uint32_t)octets[length - 1] << 8;
	return sum;
}

static void stamp(uint8_t *frame, size_t length)
{
	uint8_t *ip = frame + ETHERNET, *tcp = ip + (ip[0] & 15) * 4;
	size_t segment = length - (size_t)(tcp - frame);
	uint8_t *payload = tcp + (tcp[12] >> 4) * 4;
	int64_t now;
	uint32_t sum;

	if (payload + sizeof(now) > frame + length)
		return;
	now = now_ns(CLOCK_REALTIME);
	memcpy(payload, &now, sizeof(now));
	tcp[16] = tcp[17] = 0;
	sum = sum16(tcp, segment, sum16(ip + 12, 8, 6 + (uint32_t)segment));
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	tcp[16] = (uint8_t)(~sum >> 8);
	tcp[17] = (uint8_t)~sum;
}

static void send_some(unsigned count)
{
	while (count && !stopped) {
		unsigned burst = count < BURST ? count : BURST, done = 0;

		for (unsigned i = 0; i < burst; i++) {
			const struct frame *frame = &frames[next_frame];

			if (++next_frame == frame_count)
				next_frame = 0;
			parts[i].iov_base = (void *)frame->octets;
			parts[i].iov_len = frame->length;
			if (stamping) {
				memcpy(copies[i], frame->octets, frame->length);
				stamp(copies[i], frame->length);
				parts[i].iov_base = copies[i];
			}
		}
		while (done < burst && !stopped) {
			int went = sendmmsg(out, messages + done, burst - done, 0);

			if (went > 0) {
				done += (unsigned)went;
				sent += (unsigned)went;
			} else if (errno == ENOBUFS || errno == EAGAIN) {
				refused++;
				done++;
			} else if (errno != EINTR)
				fail("sendmmsg");
		}
		count -= burst;
	}
}

static unsigned backlog(int table)
{
	char text[4096], *line = text;
	ssize_t got = pread(table, text, sizeof(text) - 1, 0);
	unsigned sum = 0;

	if (got < 0)
		fail("backlog");
	text[got] = 0;
	while (line && *line) {
		unsigned queued;

		/* Queue number, port id of its owner, packets waiting. */
		if (sscanf(line, "%*u %*d %u", &queued) == 1)
			sum += queued;
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return sum;
}

static void keep_backlog(const char *path, unsigned low, unsigned high, unsigned long long count)
{
	int table = open(path, O_RDONLY | O_CLOEXEC);
	int64_t pause = PAUSE_MIN_NS;

	if (table < 0)
		fail(path);
	while (!stopped && (!count || sent < count)) {
		unsigned waiting = backlog(table), room = high - waiting;

		if (waiting > low) {
			sleep_until(now_ns(CLOCK_MONOTONIC) + pause);
			pause = pause * 2 < PAUSE_MAX_NS ? pause * 2 : PAUSE_MAX_NS;
			continue;
		}
		pause = PAUSE_MIN_NS;
		if (count && count - sent < room)
			room = (unsigned)(count - sent);
		send_some(room);
	}
	close(table);
}

static void keep_beat(double rate, unsigned long long count)
{
	int64_t start = now_ns(CLOCK_MONOTONIC), beat = start;

	while (!stopped && (!count || sent + refused < count)) {
		unsigned long long due = BURST, gone = sent + refused;

		if (rate > 0) {
			due = (unsigned long long)((double)(beat - start) * rate / 1e9) + 1;
			due = due > gone ? due - gone : 0;
		}
		if (count && due > count - gone)
			due = count - gone;
		send_some((unsigned)due);
		if (rate > 0) {
			/* A lower rate than one per interval: sleep until the next packet is due. */
			double next = (double)(sent + refused) * 1e9 / rate;

			beat += BEAT_NS;
			if ((double)(beat - start) < next)
				beat = start + (int64_t)next;
			sleep_until(beat);
		}
	}
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct sockaddr_ll to = { .sll_family = AF_PACKET };
	int one = 1, size = 8 << 20;
	unsigned long long count;
	int64_t began, used;

	if (argc < 5) {
		fprintf(stderr, "usage: generate INTERFACE FRAMES COUNT RATE [stamp] "
				"[backlog PATH LOW HIGH]\n");
		return 2;
	}
	read_frames(argv[2]);
	count = strtoull(argv[3], NULL, 10);
	stamping = argc > 5 && strcmp(argv[5], "stamp") == 0;
	out = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
	to.sll_ifindex = (int)if_nametoindex(argv[1]);
	if (out < 0 || !to.sll_ifindex || bind(out, (struct sockaddr *)&to, sizeof(to)) < 0)
		fail(argv[1]);
	setsockopt(out, SOL_PACKET, PACKET_QDISC_BYPASS, &one, sizeof(one));
	setsockopt(out, SOL_SOCKET, SO_SNDBUF, &size, sizeof(size));
	for (unsigned i = 0; i < BURST; i++) {
		messages[i].msg_hdr.msg_iov = &parts[i];
		messages[i].msg_hdr.msg_iovlen = 1;
	}
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	prctl(PR_SET_TIMERSLACK, 1UL);
	used = now_ns(CLOCK_PROCESS_CPUTIME_ID);
	began = now_ns(CLOCK_MONOTONIC);
	if (argc > 8 && strcmp(argv[argc - 4], "backlog") == 0)
		keep_backlog(argv[argc - 3], (unsigned)atoi(argv[argc - 2]),
			     (unsigned)atoi(argv[argc - 1]), count);
	else
		keep_beat(strtod(argv[4], NULL), count);
	printf("%llu %.6f %.6f %llu\n", sent, (double)(now_ns(CLOCK_MONOTONIC) - began) / 1e9,
	       (double)(now_ns(CLOCK_PROCESS_CPUTIME_ID) - used) / 1e9, refused);
	return 0;
}
