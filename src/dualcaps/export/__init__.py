"""Trained networks in the formats of other programs, each compared with the network before it is put in place."""
