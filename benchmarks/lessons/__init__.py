"""The lessons in docs/lessons: metrics of their studies, figures, tables and sentences.

metrics     functions that the files in configs/studies name
data        from the folder of a study to docs/lessons/data/STUDY.json, and reading that file
wording     numbers, differences and verdicts as text
drawing     the style of all figures
studies/    for each study: its figure, its table and its sentences
pages       writes them into docs/lessons/*.md

`python -m benchmarks.lessons` rewrites pages and figures from the data; `--run` carries out the studies before.
"""
