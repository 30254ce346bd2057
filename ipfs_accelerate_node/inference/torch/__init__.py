"""Models on torch, on the CPU and on CUDA. Imported in workers and in the converter only, never by the daemon."""
