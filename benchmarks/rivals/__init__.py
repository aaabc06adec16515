"""Models of other tools, and processes that time one model each."""
