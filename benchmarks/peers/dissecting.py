# SPDX-License-Identifier: MIT
"""The usual tutorial: `dissecting.py QUEUE` dissects each packet with scapy, then accepts it."""

import sys

from netfilterqueue import NetfilterQueue, Packet
from scapy.layers.inet import IP, TCP


def _look(packet: Packet) -> None:
    dissected = IP(packet.get_payload())
    if dissected.haslayer(TCP) and dissected[TCP].sport == 0:
        packet.drop()
    else:
        packet.accept()


queue = NetfilterQueue()
queue.bind(int(sys.argv[1]), _look)
queue.run()
