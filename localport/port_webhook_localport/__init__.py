"""A local Port: enough of Port's API on a loopback address to rehearse a webhook backend.

Nothing is imported here on purpose: `control` is used at deploy time and must not load the server.
"""

__version__ = "0.1.0"
