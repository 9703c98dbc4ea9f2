# SPDX-License-Identifier: MIT
"""Asks the running kernel which rules of conntrack it follows.

A release suggests a generation of rules, and vendors backport changes; the kernel itself answers
for certain. `questions.py` has the segments that tell the generations apart, as data; `live.py`
sends them through the kernel's conntrack in a network namespace that exists only for this;
`recognise.py` finds the generation with those answers.
"""
