"""From images to visual tokens (tower) to one embedding (pooler): the network that is trained and kept."""
