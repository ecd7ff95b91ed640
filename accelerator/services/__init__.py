"""What the box does: joins exchanges, protocol rules and the upstream side. Only the daemon imports services."""
