"""Round 2 without a network: what a run would ship, in one signed file, and the personal model made of it."""
