"""A camera: its interface, a device that serves photographs, and the demo that uses it."""
