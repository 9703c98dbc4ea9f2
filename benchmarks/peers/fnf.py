# SPDX-License-Identifier: MIT
"""fnfqueue as in its documentation: `fnf.py QUEUE` accepts every packet."""

import sys

import fnfqueue

connection = fnfqueue.Connection()
queue = connection.bind(int(sys.argv[1]))
queue.set_mode(fnfqueue.MAX_PAYLOAD, fnfqueue.COPY_PACKET)
while True:
    try:
        for packet in connection:
            packet.accept()
    except fnfqueue.BufferOverflowException:
        connection.reset()
