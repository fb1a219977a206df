"""Devices simulated on this machine: an ARM64 processor, a browser. Set up in the cache folder, without root."""
