"""What the box does: joins the data plane's exchanges, the protocol rules and the upstream side. Only the daemon imports services."""
