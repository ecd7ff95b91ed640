"""Stored responses as the data plane takes them: heads, who may share them, when a stale one may answer, what is
remembered of a key. No exchange is answered and nothing is fetched here."""
