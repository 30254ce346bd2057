"""What `scripts/bench fetch` is made of: the bed it works in, the rivals, and one function per target."""
