"""The arithmetic of a purchase: what fits on a GPU, what an item costs, how many replicas an objective needs. Pure."""
