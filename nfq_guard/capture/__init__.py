# SPDX-License-Identifier: MIT
"""Captures: pcap and pcapng, read as a stream of frames and written packet by packet."""
