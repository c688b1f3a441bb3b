"""Shared ground of both stages: films, boxes, files. Imports nothing of ours."""
