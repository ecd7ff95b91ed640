"""The disk tier: its log of segments, keys, quotas, erasing, and what a miss finds there. Fetches nothing; the index
itself is store/, which is pure."""
