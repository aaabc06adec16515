"""Samples that are files as devices get them: pictures and recordings."""
