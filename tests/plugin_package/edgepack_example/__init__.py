"""Plug-ins of edgepack, one of each kind."""
