# SPDX-License-Identifier: MIT
"""Stands in for the module that installs pip: the stub of pip needs no installing."""
