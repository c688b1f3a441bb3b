"""What is definitely normal, and how surely."""
