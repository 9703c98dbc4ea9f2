# SPDX-License-Identifier: MIT
"""`python -m nfq_guard` is the command `nfq-guard`."""

from nfq_guard.entry import main

main()
