"""EAGLE-3 (arXiv 2503.01840): a drafter that writes token by token, on the target's hidden states and then its own."""
