"""Owns the way out of a sandbox with `network = "nat"`: a router of lambox's own, its filter, name servers.

netlink    messages and sockets (netlink(7))
links      interfaces, addresses, routes, neighbours (rtnetlink(7))
nftables   tables, chains, rules (linux/netfilter/nf_tables.h)
rules      what is let through, and where
hostside   what the host's own network namespace gets for it, and gets back
router     the namespace between sandboxes and the host, and the thread that lives in it
resolvers  which name servers functions are led to
relay      name service where the host's server listens on loopback
"""
