"""`python -m ipfs_accelerate_node`: the same as the console script."""

from ipfs_accelerate_node.cli import main

if __name__ == "__main__":
    main()
