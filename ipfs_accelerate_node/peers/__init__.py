"""Other nodes: finding them, reaching them, asking them."""
