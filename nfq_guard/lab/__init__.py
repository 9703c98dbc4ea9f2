# SPDX-License-Identifier: MIT
"""The classic resets, reproduced and measured in network namespaces.

`scenarios` build networks, `mitigations` and `guard` configure the router, `trial` runs one
scenario with one mitigation, and `matrix` runs many trials. Client and server are separate
processes (`peers`), and scapy builds the stray segment (`strays`). The outcome is measured on the
links (`wiretap`) and with the kernel's counters.
"""
