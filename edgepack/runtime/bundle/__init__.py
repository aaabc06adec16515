"""The bundle as a file: its canonical zip, its index, and the engine sealed beside it."""
