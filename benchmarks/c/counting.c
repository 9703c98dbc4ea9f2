// SPDX-License-Identifier: MIT
/*
 * Lets a program under callgrind choose which of its instructions are counted. Without callgrind
 * these functions do nothing.
 */

#include <valgrind/callgrind.h>

/* Start counting, from zero. */
void counting_begin(void)
{
	CALLGRIND_START_INSTRUMENTATION;
	CALLGRIND_ZERO_STATS;
}

/* Stop, and write the counts under this name. */
void counting_end(const char *name)
{
	CALLGRIND_DUMP_STATS_AT(name);
	CALLGRIND_STOP_INSTRUMENTATION;
}
