"""Loaders of public chest film sets in their published folder layout, as rows of a films.csv."""
