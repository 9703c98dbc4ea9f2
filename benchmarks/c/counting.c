// SPDX-License-Identifier: MIT
/*
 * Lets a program under callgrind say which of its instructions are counted. Without callgrind
 * these do nothing.
 */

#include <valgrind/callgrind.h>

/* Count from here, from nothing. */
void counting_begin(void)
{
	CALLGRIND_START_INSTRUMENTATION;
	CALLGRIND_ZERO_STATS;
}

/* Stop, and write what was counted under this name. */
void counting_end(const char *name)
{
	CALLGRIND_DUMP_STATS_AT(name);
	CALLGRIND_STOP_INSTRUMENTATION;
}
