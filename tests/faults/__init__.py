"""Faults on purpose: kills, full disks, flipped bits, signals and hostile files, tried at random and counted.

By hand, since it takes as long as it is given: `python -m tests.faults --minutes 20`.
"""
