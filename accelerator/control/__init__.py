"""The control socket: server side for the daemon, client side for accelctl. Never touches the data plane directly."""
