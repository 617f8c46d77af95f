"""The exit codes of `python -m launcher.train`, by which a scheduler can decide whether to start a run again.

sbatch keeps these codes. torchrun and `ray job` do not: read FINISHED or FATAL in the run directory there.
"""

from __future__ import annotations

import enum


class ExitCode(enum.IntEnum):
    """Exit codes of a run; 64 to 78 follow BSD's sysexits.h where possible.

    | code | name        | meaning                                                 | run again?           |
    |------|-------------|---------------------------------------------------------|----------------------|
    | 0    | OK          | finished, or had finished before                        | no                   |
    | 1    | USER_CODE   | the user's code raised, and the retries are used up     | after a fix          |
    | 64   | USAGE       | invalid command line: no such file, an invalid override | with another command |
    | 65   | DATA        | the data set or every checkpoint is corrupt             | after a repair       |
    | 69   | UNAVAILABLE | the cluster is unavailable, or its start timed out      | later                |
    | 70   | INTERNAL    | internal error (a bug)                                  | please report it     |
    | 75   | STOPPED     | preempted or stopped; a checkpoint is saved             | yes: it resumes      |
    | 76   | HARDWARE    | hardware or collective fault; failed nodes are named    | without those nodes  |
    | 78   | CONFIG      | invalid config                                          | after a fix          |
    | 79   | DIVERGED    | the loss became infinite or not a number                | with another recipe  |
    | 130  | INTERRUPTED | SIGINT; a checkpoint is saved                           | yes: it resumes      |
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
