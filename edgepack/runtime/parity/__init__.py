"""How near one answer is to another, and whether that is near enough."""
