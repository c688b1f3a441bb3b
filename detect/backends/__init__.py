"""Other detection libraries behind the same files and metrics; imported only when asked for."""
