"""The Paceline client SDK."""
