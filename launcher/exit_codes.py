"""What `python -m launcher.train` returns, so that a scheduler can decide without reading a log.

sbatch keeps these codes; torchrun and `ray job` do not: there, read FINISHED or FATAL in the run directory.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of a run; 64 to 78 have the meanings of BSD's sysexits.h where one fits.

    | code | name        | meaning                                                          | run again?              |
    |------|-------------|------------------------------------------------------------------|-------------------------|
    | 0    | OK          | finished, or found already finished                              | no                      |
    | 1    | USER_CODE   | the user's code raised, and retries are used up                  | after mending it        |
    | 64   | USAGE       | the command line is wrong: no such file, a bad override          | with another command    |
    | 65   | DATA        | the data set or every checkpoint is corrupt                      | after mending it        |
    | 69   | UNAVAILABLE | the cluster is unavailable, or its start timed out               | later                   |
    | 70   | INTERNAL    | a mistake of the launcher itself                                 | please report it        |
    | 75   | STOPPED     | preempted or stopped, with a checkpoint saved                    | yes: it goes on         |
    | 76   | HARDWARE    | a hardware or collective fault; the bad nodes are named          | without those nodes     |
    | 78   | CONFIG      | the config is invalid                                            | never as it is          |
    | 79   | DIVERGED    | the loss became infinite or not a number                         | with another recipe     |
    | 130  | INTERRUPTED | SIGINT, with a checkpoint saved                                  | yes: it goes on         |
    """

    OK = 0
    USER_CODE = 1
    USAGE = 64
    DATA = 65
    UNAVAILABLE = 69
    INTERNAL = 70
    STOPPED = 75
    HARDWARE = 76
    CONFIG = 78
    DIVERGED = 79
    INTERRUPTED = 130
