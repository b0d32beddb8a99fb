"""How are the sparse buckets of a native histogram written down?"""

from __future__ import annotations

from collections.abc import Mapping


def spans(buckets: Mapping[int, int]) -> tuple[list[tuple[int, int]], list[int]]:
    """Runs of neighbouring buckets as (distance from the run before, length), and all their counts.

    The first distance is the index of the first bucket. Small gaps are filled with empty buckets, which takes less
    room than another run (so does client_golang).
    """
    runs: list[tuple[int, int]] = []
    counts: list[int] = []
    end = 0
    for index in sorted(index for index, count in buckets.items() if count):
        gap = index - end
        if runs and gap <= 2:
            runs[-1] = (runs[-1][0], runs[-1][1] + gap + 1)
            counts += [0] * gap
        else:
            runs.append((gap, 1))
        counts.append(buckets[index])
        end = index + 1
    return runs, counts
