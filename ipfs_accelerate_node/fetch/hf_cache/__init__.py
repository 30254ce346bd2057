"""The Hugging Face cache of a user's own machine, in both directions: written out of the store, and taken into it.

Everything below the cache folder is reached by descriptors, one component at a time and never through a symlink that
leads out of it: the folder belongs to the user who runs the daemon, what lies in it may come from anywhere.
"""
