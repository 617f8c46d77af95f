"""How far something is, at which rate, and how long it still takes: one wording for every line of progress."""

from __future__ import annotations


def in_time(seconds: float) -> str:
    """A time of seconds as hours, minutes and seconds, without hours below one.

    >>> in_time(75.4), in_time(3661), in_time(0.4)
    ('1:15', '1:01:01', '0:00')
    """
    minutes, second = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{second:02d}" if hours else f"{minutes}:{second:02d}"


def progress_line(task: str, unit: str, done: int, total: int, since: int, elapsed_s: float) -> str:
    """What is done of what, and if `since` units took `elapsed_s` seconds, the rate and the time left.

    >>> progress_line("packing train", "images", 600_000, 1_281_167, 300_000, 600.0)
    'packing train: 600,000 of 1,281,167 images, 500 images/s, 22:42 left'
    """
    line = f"{task}: {done:,} of {total:,} {unit}"
    if since <= 0 or elapsed_s <= 0:
        return line
    rate = since / elapsed_s
    return f"{line}, {rate:,.0f} {unit}/s, {in_time((total - done) / rate)} left"
