// SPDX-License-Identifier: MIT
/*
 * The valid traffic during which INVALID packets are injected.
 *
 * traffic serve ADDRESS PORT: answers requests until SIGTERM; prints "ready" on stderr.
 * traffic requests ADDRESS PORT SECONDS: four connections, each with one request of 64 octets a
 *     millisecond, answered with 1,000. Prints the time that each took in nanoseconds, one a line,
 *     then "failed N", the number of broken connections. The time of a request counts from when it
 *     was due, even if the one before it delayed it.
 * traffic bulk ADDRESS PORT SECONDS: one connection, as fast as possible. Prints the octets
 *     received and the nanoseconds taken.
 */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define REQUEST 64
#define ANSWER 1000
#define ENDLESS UINT32_MAX
#define CONNECTIONS 4
#define BEAT_NS 1000000LL
#define ANSWERS_MAX 100000

struct asker {
	pthread_t thread;
	int failed;
	size_t answers;
	int64_t took[ANSWERS_MAX];
};

static struct sockaddr_in peer = { .sin_family = AF_INET };
static int64_t end;
static struct asker askers[CONNECTIONS];

static int64_t now_ns(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static int whole(int connection, void *octets, size_t size)
{
	size_t got = 0;

	while (got < size) {
		ssize_t more = recv(connection, (char *)octets + got, size - got, 0);

		if (more <= 0)
			return 0;
		got += (size_t)more;
	}
	return 1;
}

static void *serve_one(void *context)
{
	static const char filler[1 << 16];
	int connection = (int)(intptr_t)context;
	char request[REQUEST];

	while (whole(connection, request, sizeof(request))) {
		uint32_t wanted;

		memcpy(&wanted, request, sizeof(wanted));
		for (uint64_t gone = 0; wanted == ENDLESS || gone < wanted;) {
			size_t part = wanted == ENDLESS || wanted - gone > sizeof(filler) ?
					      sizeof(filler) : (size_t)(wanted - gone);
			ssize_t went = send(connection, filler, part, MSG_NOSIGNAL);

			if (went <= 0) {
				close(connection);
				return NULL;
			}
			gone += (uint64_t)went;
		}
	}
	close(connection);
	return NULL;
}

static int serve(void)
{
	int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&peer, sizeof(peer)) < 0 || listen(listener, 64) < 0) {
		perror("traffic: listen");
		return 1;
	}
	fprintf(stderr, "ready\n");
	for (;;) {
		int connection = accept(listener, NULL, NULL);
		pthread_t thread;

		if (connection < 0)
			continue;
		setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		if (pthread_create(&thread, NULL, serve_one, (void *)(intptr_t)connection) == 0)
			pthread_detach(thread);
		else
			close(connection);
	}
}

static int ask(void)
{
	struct timeval limit = { .tv_sec = 2 };
	int one = 1, connection = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(connection, (struct sockaddr *)&peer, sizeof(peer)) < 0)
		return -1;
	return connection;
}

static int request(int connection, uint32_t wanted)
{
	char octets[REQUEST] = { 0 };

	memcpy(octets, &wanted, sizeof(wanted));
	return send(connection, octets, sizeof(octets), MSG_NOSIGNAL) == sizeof(octets);
}

static void *ask_often(void *context)
{
	struct asker *asker = context;
	char answer[ANSWER];
	int connection = ask();
	int64_t due = now_ns(), began, done = due;

	prctl(PR_SET_TIMERSLACK, 1UL);
	asker->failed = connection < 0;
	while (!asker->failed && done < end && asker->answers < ANSWERS_MAX) {
		struct timespec time;

		due += BEAT_NS;
		if (done < due) {
			time.tv_sec = due / 1000000000LL;
			time.tv_nsec = due % 1000000000LL;
			clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL);
			began = now_ns();
		} else
			began = due;
		if (!request(connection, ANSWER) || !whole(connection, answer, ANSWER)) {
			asker->failed = 1;
			break;
		}
		done = now_ns();
		asker->took[asker->answers++] = done - began;
	}
	close(connection);
	return NULL;
}

static int requests(void)
{
	int failed = 0;

	for (int i = 0; i < CONNECTIONS; i++)
		if (pthread_create(&askers[i].thread, NULL, ask_often, &askers[i]) != 0)
			return 1;
	for (int i = 0; i < CONNECTIONS; i++) {
		pthread_join(askers[i].thread, NULL);
		for (size_t j = 0; j < askers[i].answers; j++)
			printf("%lld\n", (long long)askers[i].took[j]);
		failed += askers[i].failed;
	}
	printf("failed %d\n", failed);
	return 0;
}

static int bulk(void)
{
	static char octets[1 << 18];
	int connection = ask();
	int64_t began = now_ns(), now = began;
	unsigned long long sum = 0;

	if (connection >= 0 && request(connection, ENDLESS))
		while (now < end) {
			ssize_t got = recv(connection, octets, sizeof(octets), 0);

			if (got <= 0)
				break;
			sum += (unsigned long long)got;
			now = now_ns();
		}
	/* If the connection broke early, the whole time counts. */
	printf("%llu %lld\n", sum, (long long)((now < end ? end : now) - began));
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 4 || inet_pton(AF_INET, argv[2], &peer.sin_addr) != 1) {
		fprintf(stderr, "usage: traffic serve|requests|bulk ADDRESS PORT [SECONDS]\n");
		return 2;
	}
	peer.sin_port = htons((uint16_t)atoi(argv[3]));
	if (strcmp(argv[1], "serve") == 0)
		return serve();
	end = now_ns() + (int64_t)((argc > 4 ? strtod(argv[4], NULL) : 1) * 1e9);
	return strcmp(argv[1], "bulk") == 0 ? bulk() : requests();
}
