"""The coordinating centre of a deployment: who takes part, what each site has sent, and what it is given."""
