"""The checks of `launcher doctor` and of the start of each attempt.

finding             the result of a check, and how checks are run
host_requirements   what a run requires of one host
suite               all checks of one host; one topic per file: packages, system, network, variables, ray_token,
                    storage, dataset, accelerator
children            measurements in child processes: arithmetic (of a device), collective (between hosts)
hosts               several hosts, through Ray or a store (store_hosts), and the tasks that they carry out (tasks)
host_facts          facts of a host, and how hosts differ
bisection           finds the bad host by tests of pairs
cluster             all checks of several hosts
attempt_check       the all-reduce of an attempt's workers before training
"""
