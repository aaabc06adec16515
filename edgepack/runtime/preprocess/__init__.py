"""Conversion of raw data, such as the bytes of a JPEG, to a model's inputs."""
