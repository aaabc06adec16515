"""The device: what is here, and which of the variants it can run."""
