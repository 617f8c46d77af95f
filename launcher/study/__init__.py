"""Studies: many runs that differ in a few keys, trained, compared and drawn.

schema, load     a YAML file -> a Study, with every mistake found
plan             a Study -> its runs, each with a config of its own
rounds           which runs come next: all, the best of a tuning, those that survive successive halving
worker, pool     runs in processes that stay alive between runs
state            what the run directory says of a run, and its metrics
session          the loop over rounds, and the line of progress
statistics       mean, standard deviation, intervals, paired differences
results          tables, CSV and JSON
figures, page    PNG and SVG, and one HTML page
"""
