"""acceleratord's side of accelerator-netd: what policy wants of the kernel, the client that says it, intercepted
sockets. No netlink here, and no system call that wants a capability."""
