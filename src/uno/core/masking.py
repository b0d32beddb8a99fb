"""What must never be shown, wherever a text comes from."""

from __future__ import annotations

import re

#: User and password in an address.
_SECRET = re.compile(r"(?<=://)[^/?#\s]*:[^/?#\s]*(?=@)")


def masked(text: str) -> str:
    """``text`` without the users and passwords of addresses that are in it."""
    return _SECRET.sub("***", text) if "://" in text else text
