"""The parts of tools/explore.py: the table, one pass over the films, the probe, the page."""
