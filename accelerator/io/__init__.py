"""Sockets of the control plane: upstream connections, name resolution. Knows protocols, never services or policy files."""
