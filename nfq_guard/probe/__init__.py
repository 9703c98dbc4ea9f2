# SPDX-License-Identifier: MIT
"""Determines which conntrack rules the running kernel follows.

A release only suggests a generation of rules, because vendors backport changes; a test of the
kernel is certain. `questions.py` has the segments that tell the generations apart, as data;
`live.py` sends them through the kernel's conntrack in a temporary network namespace; `recognise.py`
finds the generation with these results.
"""
