"""Deciding everything before data is touched."""
