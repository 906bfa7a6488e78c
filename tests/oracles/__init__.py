"""Independent implementations that the model is compared with."""
