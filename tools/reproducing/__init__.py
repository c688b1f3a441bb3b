"""The parts of tools/reproduce.py: the papers' tables, one configuration file each."""
