"""Faults on purpose: kills, full disks, flipped bits, signals and hostile files, tried at random and counted.

By hand, since it takes as long as it is given: `python -m tests.faults --minutes 20`; `--only kill,disk` tries some
kinds alone. `kinds` holds those of trainings and commands, `serving` those of what stands behind a page: servers killed
at a random change of a file, two servers with one folder, process ids given out again, a clock set back, and the
process that draws images killed. `filing` has uploads, edits, fixes, deletions and adapter files, killed,
interrupted or with a full disk at a change of a file; `commanding` the same for merge, resize, extract, captioning,
unpacking, generate, grids, class images, evaluate, promotions and sweeps. `hostile` gives every reader of files what is
meant to break it.
"""
