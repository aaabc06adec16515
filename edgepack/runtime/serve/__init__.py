"""HTTP server of `serve`, on the standard library alone."""
