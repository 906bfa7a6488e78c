"""Scripts that run under a rival's own Python; they import nothing of mixray."""
