"""Sockets of the control plane: upstream connections, name resolution. Never imports services or policy."""
