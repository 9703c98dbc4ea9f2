# SPDX-License-Identifier: MIT
"""Reads pcap and pcapng as a stream of frames, and writes pcapng."""
