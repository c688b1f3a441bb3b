"""A small network that segments the lung field of a film or a crop."""
