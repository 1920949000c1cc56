"""From a model to its search space: groups, costs, bins, and the oracle that checks them."""
