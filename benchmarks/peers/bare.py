# SPDX-License-Identifier: MIT
"""netfilterqueue with a minimal callback: `bare.py QUEUE` accepts every packet."""

import sys

from netfilterqueue import NetfilterQueue, Packet


def _accept(packet: Packet) -> None:
    packet.accept()


queue = NetfilterQueue()
queue.bind(int(sys.argv[1]), _accept)
queue.run()
