// SPDX-License-Identifier: MIT
/*
 * arrive INTERFACE PORT: prints the time in nanoseconds that each packet of `generate ... stamp`
 * to TCP port PORT took until it arrived on INTERFACE, one a line. Both ends use the same clock:
 * the sender just before it sends, and the kernel when the receiving interface gets the packet.
 *
 * Prints "ready" on stderr once it listens; at SIGTERM it prints its results and ends.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#define KEPT_MAX (1 << 22)
#define ETHERNET 14

static volatile sig_atomic_t stopped;
static int64_t delays[KEPT_MAX];

static void stop(int number)
{
	(void)number;
	stopped = 1;
}

/* The kernel's receive timestamp; 0 without one. */
static int64_t taken(struct msghdr *message)
{
	for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
		struct timespec time;

		if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_TIMESTAMPNS)
			continue;
		memcpy(&time, CMSG_DATA(part), sizeof(time));
		return time.tv_sec * 1000000000LL + time.tv_nsec;
	}
	return 0;
}

/* The time of sending; 0 for packets of others. */
static int64_t stamped(const uint8_t *frame, size_t length, uint16_t port)
{
	const uint8_t *ip = frame + ETHERNET, *tcp, *payload;
	int64_t time;

	if (length < ETHERNET + 40 || ip[0] >> 4 != 4 || ip[9] != 6)
		return 0;
	tcp = ip + (ip[0] & 15) * 4;
	if (tcp + 20 > frame + length || (tcp[2] << 8 | tcp[3]) != port)
		return 0;
	payload = tcp + (tcp[12] >> 4) * 4;
	if (payload + sizeof(time) > frame + length)
		return 0;
	memcpy(&time, payload, sizeof(time));
	return time;
}

int main(int argc, char **argv)
{
	struct sigaction action = { .sa_handler = stop };
	struct sockaddr_ll from = { .sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_IP) };
	int on = 1, size = 64 << 20, in;
	size_t kept = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: arrive INTERFACE PORT\n");
		return 2;
	}
	in = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_IP));
	from.sll_ifindex = (int)if_nametoindex(argv[1]);
	if (in < 0 || !from.sll_ifindex || bind(in, (struct sockaddr *)&from, sizeof(from)) < 0 ||
	    setsockopt(in, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof(on)) < 0) {
		fprintf(stderr, "arrive: %s: %s\n", argv[1], strerror(errno));
		return 1;
	}
	setsockopt(in, SOL_SOCKET, SO_RCVBUFFORCE, &size, sizeof(size));
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	fprintf(stderr, "ready\n");
	while (!stopped && kept < KEPT_MAX) {
		uint8_t frame[2048], control[256];
		struct iovec part = { frame, sizeof(frame) };
		struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1,
					  .msg_control = control, .msg_controllen = sizeof(control) };
		ssize_t got = recvmsg(in, &message, 0);
		int64_t sent, came;

		if (got < 0)
			continue;
		sent = stamped(frame, (size_t)got, (uint16_t)atoi(argv[2]));
		came = taken(&message);
		if (sent && came)
			delays[kept++] = came - sent;
	}
	for (size_t i = 0; i < kept; i++)
		printf("%lld\n", (long long)delays[i]);
	return 0;
}
