"""What `launcher doctor` looks at: small checks of one host, and of all hosts together.

finding       what a check says; how checks are run, each in bounded time        needs   what a run asks of a host
packages system network variables accelerator storage dataset access      checks of one host, a topic a file
arithmetic collective      measurements that run in processes of their own       children      which start and end those
report        facts of one host, and what differs between hosts                  bisection     which host is the bad one
cluster       all of it over several hosts, reached through Ray or torchrun       tasks   what a host can be asked to do
store_hosts   hosts that are reached through a store      together   what an attempt's workers try before they train
"""
