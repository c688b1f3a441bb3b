"""Single networks: one network with one answer a film, as the papers train them."""
