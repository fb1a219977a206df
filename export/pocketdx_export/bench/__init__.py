"""How large, how fast and how hungry the files of a bundle are on this machine, beside the fp32 file."""
