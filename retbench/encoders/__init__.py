"""Encoders: texts in, unit vectors out, by a method."""
