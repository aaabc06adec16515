"""Device info, and the choice of the variant that the device can run."""
