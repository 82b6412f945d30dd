"""Encoders: turn texts into normalized vectors, as a method defines."""
