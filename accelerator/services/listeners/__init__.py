"""Where viewers and operators come in: listening sockets and who inherits them, certificates, the admin token. Reads
no request."""
