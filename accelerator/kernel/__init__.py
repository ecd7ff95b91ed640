"""What the box asks of the kernel's network stack: values, plans, and the sockets that carry them out. netd only."""
