"""What the disk tier knows of what it holds: index, checkpoint, stored heads. Pure: bytes in, bytes out."""
