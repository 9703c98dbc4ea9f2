# SPDX-License-Identifier: MIT
"""Netfilter's netlink: messages, which are pure, and the connection that carries them."""
