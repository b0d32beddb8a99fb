"""The parts of uno: resources (what exists) and monitoring (what is observed)."""
