"""What runs where: the engine, the actors around it, the Python handle."""
