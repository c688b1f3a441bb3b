"""Labelling sessions behind tools/annotate.py."""
