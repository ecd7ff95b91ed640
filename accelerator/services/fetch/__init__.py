"""What becomes of an exchange: flights, fills, passed requests, tunnels, private answers, purges. HTTP's rules are in
protocols/; nothing here knows a file or a kernel object."""
