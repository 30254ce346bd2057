"""Layer 6: the HTTP listener of the user: wire types, access, and handlers that hand over to the node."""
