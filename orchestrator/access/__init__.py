"""Who may do what, whatever the way they came: keys with a scope, sessions of the pages, one-time links, the audit log.

Owns secrets and their digests. Knows no HTTP: `orchestrator.api.access` asks here.
"""
