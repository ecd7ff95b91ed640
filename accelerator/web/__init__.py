"""The admin listener's pages: health and metrics. Reads what the daemon hands it, changes nothing."""
