"""What is told to people: events, log lines, the logs' files, what stands for a query in them. Decides nothing of
traffic, and imports no other service."""
