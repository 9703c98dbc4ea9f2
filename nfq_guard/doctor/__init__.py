# SPDX-License-Identifier: MIT
"""Read-only diagnosis of a host: what keeps INVALID packets from being judged correctly."""
