# SPDX-License-Identifier: MIT
"""The classic resets, reproduced in network namespaces and measured there.

`scenarios` build networks, `mitigations` and `guard` are what is tried in them, `trial` is one
run of one scenario with one mitigation, `matrix` many of them. The ends of each connection are
processes of their own (`peers`), the segment that goes astray is built with scapy (`strays`),
and what became of it all is read from the wire (`wiretap`) and from the kernel's counts.
"""
