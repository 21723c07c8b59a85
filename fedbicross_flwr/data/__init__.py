"""Labelled 28x28 images and how they are dealt to clients."""
