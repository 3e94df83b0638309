"""Training: a config, the loop that carries it out and can go on where it stopped, and several runs side by side."""
