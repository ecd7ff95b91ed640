"""Relays at run time: from policy to running flows, their receivers, viewers and announcements. No datagram passes
through here: that is ext/."""
