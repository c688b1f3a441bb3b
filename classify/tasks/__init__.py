"""What can be trained: members, single networks, restoring networks, selected features."""
