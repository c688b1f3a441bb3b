"""The parts of python -m classify.audit: regions and measures, controls, flags, page."""
