# SPDX-License-Identifier: MIT
"""`python -m nfq_guard` is the command `nfq-guard`."""

import sys

from nfq_guard.cli import main

sys.exit(main())
