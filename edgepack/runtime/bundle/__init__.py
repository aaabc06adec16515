"""Files of a bundle: the canonical zip, its index, and the engine sealed beside it."""
