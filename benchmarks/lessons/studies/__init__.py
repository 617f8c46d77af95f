"""The lessons, in the order in which to read them."""

from benchmarks.lessons.lesson import Lesson
from benchmarks.lessons.studies import (
    batch_norm,
    batch_size,
    blocks,
    depth,
    gradients,
    initialisation,
    regularisation,
    schedule,
)

LESSONS: dict[str, Lesson] = {
    module.LESSON.study: module.LESSON
    for module in (depth, gradients, initialisation, batch_norm, blocks, schedule, regularisation, batch_size)
}
