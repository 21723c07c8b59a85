"""At a hospital: its images, its own directory, and what it does with its personal model."""
