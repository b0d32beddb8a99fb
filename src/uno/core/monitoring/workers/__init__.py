"""Several workers, one service: how their numbers become one without anything to set up.

``group`` tells who belongs together, ``shard`` is the mapped file of each, ``locks`` tells who lives, ``cells`` and
``member`` write, ``merge`` reads, ``fold`` keeps what the dead counted.
"""
