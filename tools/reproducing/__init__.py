"""The parts of tools/reproduce.py: the cells of a table, their runners, the probe, the page."""
