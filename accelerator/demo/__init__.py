"""The demo: an origin with synthetic media, and the box in front of it. Starts programs and serves files; nothing
of the appliance may import it, and it imports nothing of the appliance but its errors."""
