"""Viewers' credentials, verified by pure functions of bytes, keys and the time. What follows of it: services/."""
