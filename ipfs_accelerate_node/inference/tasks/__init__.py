"""Tasks: from items to a model's arrays, and from what it computes to outputs. Neither torch nor transformers."""

from ipfs_accelerate_node.inference.tasks.building import notes_of as notes_of
from ipfs_accelerate_node.inference.tasks.building import processing_for as processing_for
