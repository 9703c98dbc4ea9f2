# SPDX-License-Identifier: MIT
"""The control socket: protocol, commands, server and client."""
