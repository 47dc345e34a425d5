"""Models and their forward steps. ``interface`` is the seam; ``fake`` and ``torch`` are behind it."""
