"""Examples that run without hardware, each a folder with a README."""
