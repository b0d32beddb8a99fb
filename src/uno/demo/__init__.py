"""The demo: ``python -m uno.demo`` runs a small shop, with traffic and incidents, under uno's eyes."""
