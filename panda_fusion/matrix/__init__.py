"""A matrix of sources, targets, methods and seeds: recipe, plan, packs, records."""
