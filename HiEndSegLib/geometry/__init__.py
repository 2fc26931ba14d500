"""Floor 0: volumes, lattices, and the files they come from and go to. No torch."""
