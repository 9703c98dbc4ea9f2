// SPDX-License-Identifier: MIT
/*
 * accept_only QUEUE [accept|drop]: gives every packet of a queue the same verdict, and does nothing
 * else. It has the least cost of a packet through libnetfilter_queue, and is the reference for
 * other programs. Ends at SIGTERM.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <linux/netfilter.h>
#include <libnetfilter_queue/libnetfilter_queue.h>

/* As in the guard: room for a full queue of small packets. */
#define RECEIVE_BUFFER (4 << 20)
#define QUEUE_LENGTH 1024
#define COPY_RANGE 65531

static uint32_t verdict = NF_ACCEPT;

static int answer(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *packet,
		  void *context)
{
	struct nfqnl_msg_packet_hdr *header = nfq_get_msg_packet_hdr(packet);

	(void)message;
	(void)context;
	return nfq_set_verdict(queue, ntohl(header->packet_id), verdict, 0, NULL);
}

int main(int argc, char **argv)
{
	static char octets[65536 + 4096] __attribute__((aligned));
	struct nfq_handle *library = nfq_open();
	struct nfq_q_handle *queue;
	int descriptor;

	if (argc > 2 && strcmp(argv[2], "drop") == 0)
		verdict = NF_DROP;
	if (argc < 2 || !library) {
		fprintf(stderr, "usage: accept_only QUEUE [accept|drop], as root\n");
		return 2;
	}
	queue = nfq_create_queue(library, (uint16_t)atoi(argv[1]), answer, NULL);
	if (!queue || nfq_set_mode(queue, NFQNL_COPY_PACKET, COPY_RANGE) < 0 ||
	    nfq_set_queue_maxlen(queue, QUEUE_LENGTH) < 0) {
		perror("accept_only: queue");
		return 1;
	}
	nfnl_rcvbufsiz(nfq_nfnlh(library), RECEIVE_BUFFER);
	descriptor = nfq_fd(library);
	signal(SIGTERM, SIG_DFL);
	for (;;) {
		ssize_t got = recv(descriptor, octets, sizeof(octets), 0);

		if (got >= 0)
			nfq_handle_packet(library, octets, (int)got);
		else if (errno != ENOBUFS && errno != EINTR) {
			perror("accept_only: recv");
			return 1;
		}
	}
}
