"""Renew the table of docs/names.md from names.py."""

from __future__ import annotations

from pathlib import Path

from uno.core.monitoring import names

PAGE = Path(__file__).parents[1] / "docs" / "names.md"


def main() -> None:
    words = PAGE.read_text().partition("\n| ")[0].rstrip("\n")
    PAGE.write_text(f"{words}\n\n{names.as_table()}\n")


if __name__ == "__main__":
    main()
