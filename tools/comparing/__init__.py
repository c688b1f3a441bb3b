"""Explanations held against each other: by structural similarity, and by readers."""
