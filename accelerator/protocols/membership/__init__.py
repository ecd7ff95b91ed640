"""Group membership (IGMP, MLD, RFC 4605 proxying) as sans-IO state machines. Wire formats are in protocols/igmp.py
and mld.py."""
