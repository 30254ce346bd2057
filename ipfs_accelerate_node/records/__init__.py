"""Signed records: the node's key, canonical dag-cbor, and the envelope that ties the two together."""
