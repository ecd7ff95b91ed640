"""Protocol rules without I/O: bytes or values and `now` in, values out. No socket, asyncio, time, random, logging."""
